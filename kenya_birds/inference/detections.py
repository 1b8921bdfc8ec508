"""What is heard in a recording: a species between two samples, with a score."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """A species in one window, or in several that were joined.

    Attributes:
        recording: The recording, as it was found.
        start_sample: First sample, counted at `sample_rate_hz`: times are exact after any number of hours.
        end_sample: The sample after the last; never past the recording's end.
        sample_rate_hz: Rate at which samples are counted, the model's.
        species: eBird code.
        score: Calibrated probability, 0 to 1.
    """

    recording: str
    start_sample: int
    end_sample: int
    sample_rate_hz: int
    species: str
    score: float

    @property
    def start_s(self) -> float:
        """Begin in seconds."""
        return self.start_sample / self.sample_rate_hz

    @property
    def end_s(self) -> float:
        """End in seconds."""
        return self.end_sample / self.sample_rate_hz
