"""Scripts that are sent to a device and run there, with `edge` and `contract` alone to import."""
