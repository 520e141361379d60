"""On-device measurements: one way to reach this machine, an emulated arm64 device or a phone, and what is run there."""
