"""Environment variables for processes that compute with torch; they count before it is loaded."""

TORCH_ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}
"""For forward passes of BERT.

oneDNN and its wrapper keep a kernel for each shape of a matrix product, 1,024 of them by default,
and packed batches hardly ever repeat a shape: each extractor grew by 10 MiB a second, up to
gigabytes. 32 are as fast and take 100 MiB. Not for head trainers: to make the kernel of a small
product takes longer than to run it, and their shapes recur (`heads.recurring`). Before, cached
epochs of CoLA and of RTE took 1.5 times as long.
"""

SHARED_CORES = {"GOMP_SPINCOUNT": "1000"}
"""For several threads in one process.

Threads that wait spin for 300,000 rounds by default; when another process has the core that they
wait for, a step takes 10 times as long. 1,000: 5 % slower alone, 2 to 6 times faster so.
"""
