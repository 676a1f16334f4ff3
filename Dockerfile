# docker build -t sdjax .                              CPU
# docker build -t sdjax --build-arg EXTRA=cuda13 .     NVIDIA GPUs (or cuda12); run with --gpus all
# docker run --rm -v sdjax-cache:/cache -v "$PWD:/work" --user "$(id -u):$(id -g)" sdjax txt2img --prompt "a cat"
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

ARG EXTRA=""

COPY . /src
RUN pip install --no-cache-dir "/src${EXTRA:+[$EXTRA]}" && rm -rf /src

# Compiled programs and models of the hub outlive the container in the volume; any user may write there, since the one
# that `--user` names is not known here.
ENV HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface
RUN useradd --uid 1000 --home-dir /cache --no-create-home sdjax \
    && mkdir -p /cache /work \
    && chmod 1777 /cache /work
USER sdjax
VOLUME /cache
WORKDIR /work

ENTRYPOINT ["sdjax"]
CMD ["--help"]
