"""Models of transformers: the backbone, its fine-tuning and the exported head."""
