"""The kernels of the `cuda` table through OpenCL: source.py translates them, driver.py runs them.

With SCRATCHNET_GPU=opencl this is the machine below kernels/cuda, in the place of NVIDIA's driver.
"""
