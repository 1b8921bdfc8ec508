"""From annotated soundscape recordings to a bird classifier that is trained and published the Hugging Face way."""

__version__ = "0.1.0"
