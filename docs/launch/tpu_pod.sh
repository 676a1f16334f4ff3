#!/bin/bash
# Trains on a TPU slice of several hosts, here a v5e-64. Run it on your own computer; it runs the same command on every
# host of the slice, where JAX finds the others by itself (--hosts auto). The workdir is in a bucket, which all of them
# see; a path on a file system that all of them see works too. SDJAX is where pip finds sdjax: the git address of the
# clone that you use, or a folder that every host sees.
set -eu
TPU=my-slice ZONE=us-west4-a WORKDIR=gs://my-bucket/runs/mine
SDJAX=git+https://ADDRESS-OF-YOUR-CLONE.git   # fill this in

gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "
  python3 -m venv ~/venv && ~/venv/bin/pip install --quiet 'sdjax[tpu,train,gcs] @ $SDJAX'
  ~/venv/bin/sdjax train --config finetune --workdir $WORKDIR --hosts auto \
    --set model.path=gs://my-bucket/models/v2-1_768-ema-pruned.safetensors \
    --set 'data.parts=[{\"source\": {\"tars\": \"gs://my-bucket/data/{00000..00999}.tar\"}}]' \
    --set batch_size=512 --set parallel.fsdp=8 --set checkpoint.steps=1000
"
# batch_size is of all hosts together.
# A preempted slice gets SIGTERM: the run saves and ends with 0. Create the slice again and run this script once more.
