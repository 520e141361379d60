"""What every room agrees on: feature spec, feature functions, watched list, events, pages, manifest, errors.

Ground floor of the house: imports numpy, protobuf and xxhash, and no other room.
"""
