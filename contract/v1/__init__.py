"""Generated code of the page protos (`contract/proto/kir/v1/`), written by `make proto`; nothing is edited by hand."""
