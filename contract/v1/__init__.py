"""Generated code of the page protos (`contract/proto/kir/v1/`), written by `make proto`. Nothing here is edited by hand."""
