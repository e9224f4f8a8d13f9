"""The x86-64 architecture: descriptors, paging, control registers, CPUID, under the SDM's names."""
