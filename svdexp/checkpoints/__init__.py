"""What lies on disk: models as transformers, svdexp, llama.cpp, Dobi-SVD and ASVD write them."""
