"""What the progress shows of a line of metrics."""

from student_train.training.metrics import progress_fields


def test_the_progress_shows_every_term_of_the_loss() -> None:
    line = {"step": 3, "loss": 1.5, "hard_loss": 1.0, "focal_loss": 0.25, "accuracy": 0.5, "lr": 0.1}
    assert progress_fields({**line, "samples_per_second": 99.6, "wait_seconds": 0.04}) == {
        "samples/s": "100",
        "loss": "1.5000",
        "hard": "1.0000",
        "focal": "0.2500",
        "wait": "0.0s",
    }
