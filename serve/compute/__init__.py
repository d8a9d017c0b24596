"""What a service computes: plain Python, no Ray and no HTTP."""
