"""Ring-3 code on real KVM: every way out of it, and back."""
