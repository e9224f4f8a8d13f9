"""minivmm, from memory and images up to whole machines on real KVM."""
