"""On-device: one driver for the emulated arm64 device and for phones, the runtime they run, and how it is built."""
