"""Variables that make numpy and torch compute the same bytes on every x86-64 CPU with AVX2.

torch, MKL, oneDNN, OpenBLAS and numpy choose kernels by CPU, which round differently. They read
these variables when they are loaded, so `merit` sets them on its first import; what is set stays.
Two operations stay out of what decides bytes: torch's fused attention on a CPU (eager is used),
and torch.sqrt, exp and log on whole tensors, with what is built on them (unfused AdamW).
"""

import os
import sys

PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's kernels
    # its matrix products: by AVX2,STRICT those of odd shapes differ between Intel and AMD
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # its convolutions
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's and scipy's linear algebra
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # numpy's exp, log, power
    "OMP_NUM_THREADS": "1",  # the order of sums; two processes of one thread beat one of two
}
# libraries that were loaded before the variables were set
LATE = tuple(
    name for name in ("numpy", "torch") if name in sys.modules and PINS.keys() - os.environ
)
for _name, _value in PINS.items():
    os.environ.setdefault(_name, _value)
