from pathlib import Path

from worker_manager.launchers.model_folder import resolve


def test_a_model_is_found_through_links_and_one_outside_is_seen_to_be(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "local" / "real").mkdir(parents=True)
    (models / "local" / "link").symlink_to("real")
    (models / "local" / "out").symlink_to(tmp_path)
    assert resolve(models, "local/link") == "local/real"
    assert resolve(models, "local/out") == ".."
    assert resolve(models, "local/none") is None
