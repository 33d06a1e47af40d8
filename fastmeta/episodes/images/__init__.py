"""Few-shot episodes over images: classes in memory, the sampler, and where classes come from."""
