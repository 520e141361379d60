"""The page server: candidate pages, sparse rows, feedback. Loads exported artifacts only; never torch, training or
convert.

`server_stub.server.Server` serves a bundle over gRPC and HTTP; `server_stub.recommender.Recommender` works without
either; `server_stub.testing.InProcessServer` is the fake for users' tests.
"""
