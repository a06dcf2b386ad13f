"""Restoring videos and images with SeedVR2: settings, media, the data path, the engine and its worker process.

Nothing is imported here, so that `inference.settings`, `.errors` and `.progress` can be used without loading torch.
"""
