"""Training: events -> KuaiFormer (retrieval), server ranker (pXTR), KIR (reranker) -> checkpoint directories.

The simulator and the readers in here need numpy and pyarrow only; nothing at package level imports torch.
"""
