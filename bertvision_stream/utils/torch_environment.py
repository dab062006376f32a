"""Environment variables for processes that compute with torch, to be set before it is loaded."""

TORCH_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}
"""The variables for processes that run forward passes of BERT.

oneDNN and its wrapper keep a kernel for each shape of a matrix product, 1,024 of them by default,
and packed batches hardly ever repeat a shape: each extractor grew by 10 MiB a second, up to
gigabytes. With 32 kernels it is as fast and takes 100 MiB. Head trainers do without these
variables: their shapes recur (`heads.recurring`), and to make the kernel of a small product takes
longer than to run it. With them, cached epochs of CoLA and RTE took 1.5 times as long.
"""

SHARED_CORES = {"GOMP_SPINCOUNT": "1000"}
"""The variables for several threads in a process that shares its cores with others.

By default a waiting thread spins for 300,000 rounds; when another process has the core that it
waits for, a step takes 10 times as long. With 1,000 rounds a step is 5 % slower if the process is
alone, and 2 to 6 times faster if it is not.
"""
