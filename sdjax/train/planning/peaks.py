"""Peak rates of accelerators: floating-point operations a second of matrix products, by device kind."""

DTYPES = ("bfloat16", "float16", "tensorfloat32", "float32")

# Device kinds as JAX names them, less NVIDIA's name, and 10^12 operations a second of one such device for each of
# DTYPES. All are for dense matrices: NVIDIA's sheets print twice these, for 2:4 sparsity.
_TABLE: tuple[tuple[tuple[str, ...], tuple[float | None, ...]], ...] = (
    # Google Cloud's "TPU versions", peak compute per chip; a device is half a chip of v2 (45) and v3 (123). By default
    # XLA multiplies float32 in one pass of bfloat16 (jax.lax.Precision.DEFAULT)
    (("TPU v2",), (22.5, None, None, 22.5)),
    (("TPU v3",), (61.5, None, None, 61.5)),
    (("TPU v4",), (275.0, None, None, 275.0)),
    (("TPU v5 lite", "TPU v5e"), (197.0, None, None, 197.0)),
    (("TPU v5", "TPU v5p"), (459.0, None, None, 459.0)),
    (("TPU v6 lite", "TPU v6e"), (918.0, None, None, 918.0)),
    # NVIDIA H100 Tensor Core GPU Architecture (2022), table 2; the H200's data sheet has the same rates
    (("H200", "H100 80GB HBM3"), (989.4, 989.4, 494.7, 66.9)),
    (("H100 PCIe",), (756.0, 756.0, 378.0, 51.2)),
    (("H200 NVL", "H100 NVL"), (835.5, 835.5, 417.5, 60.0)),  # data sheets of H100 and H200
    (
        ("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"),  # A100 data sheet
        (312.0, 312.0, 156.0, 19.5),
    ),
    (("L4",), (121.0, 121.0, 60.0, 30.3)),  # L4 data sheet
    (("GeForce RTX 4090",), (165.2, 165.2, 82.6, 82.6)),  # NVIDIA Ada GPU Architecture, appendix A; sums in float32
    (("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"), (None, 125.0, None, 15.7)),  # V100 data sheet
    (("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"), (None, 112.0, None, 14.0)),
    (("Tesla T4",), (None, 65.0, None, 8.1)),  # T4 data sheet
)
PEAKS = {kind: dict(zip(DTYPES, rates)) for kinds, rates in _TABLE for kind in kinds}


def peak_flops(kind: str, dtype: str = "bfloat16") -> float | None:
    """Returns the peak rate, in operations a second, of one device of a kind (`jax.Device.device_kind`).

    It is None for kinds outside the table, such as CPUs and parts of a card, and for a dtype without fast products on
    the device. From NVIDIA's A100 on, XLA multiplies float32 as "tensorfloat32" unless `jax_default_matmul_precision`
    asks for more.

    Raises ValueError for a dtype without any known rate.
    """
    if dtype not in DTYPES:
        raise ValueError(f"peak rates are known for {', '.join(DTYPES)}; got {dtype!r}")
    rate = PEAKS.get(kind.removeprefix("NVIDIA "), {}).get(dtype)
    return None if rate is None else rate * 1e12
