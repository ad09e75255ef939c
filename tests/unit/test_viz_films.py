"""Films drawn: one scale, the path so far, finished frames alone; GIF and MP4 that open again with as many frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report_cases import film, plane, walk

from lowland import viz
from lowland.core.errors import InputError
from lowland.viz.films import build_film, is_film
from lowland.viz.movie import PER_SECOND
from lowland.viz.paths import build_animation, build_path


def test_frames_share_a_scale_and_show_the_path_so_far():
    spec = build_film(film(5), title="SGD")
    assert spec.steps == (0, 10, 20, 30, 40) and len({frame.scale for frame in spec.frames}) == 1
    scale = spec.frames[0].scale
    assert scale.minimum == pytest.approx(float(film(5).loss.min()))
    assert scale.maximum == pytest.approx(float(film(5).loss.max()))
    assert [frame.paths[0].x.size for frame in spec.frames] == [1, 2, 3, 4, 5]
    assert spec.frames[2].paths[0].x[-1] == pytest.approx(0.6) and spec.frames[2].title == "SGD, step 20"
    assert spec.caption.startswith(
        "each through the weights of its step; 5 frames from 100 measured points, those of 1.6 full surfaces"
    )


def test_frames_that_are_not_finished_are_left_out():
    broken = film(4)
    broken["status"][1] = 0
    assert build_film(broken).steps == (0, 20, 30)
    broken["status"][:] = 0
    with pytest.raises(InputError, match="finished"):
        build_film(broken)


def test_what_is_no_film_is_refused():
    assert is_film(film()) and not is_film(plane())
    for wrong in (plane(), film().isel(direction=0)):
        with pytest.raises(InputError, match="must be a film"):
            viz.film(wrong)


def test_the_slider_has_every_frame_with_its_own_field_and_path():
    figure = viz.film(film(3))
    assert [frame.name for frame in figure.frames] == ["0", "10", "20"]
    fields = [np.asarray(frame.data[0].z) for frame in figure.frames]
    np.testing.assert_allclose(fields[1], np.log10(film(3).loss.values[1].T), rtol=1e-6)
    assert [len(frame.data[1].x) for frame in figure.frames] == [1, 2, 3]
    np.testing.assert_array_equal(np.asarray(figure.data[0].z), fields[-1])
    assert all(step.args[1]["frame"]["redraw"] for step in figure.layout.sliders[0].steps)


def test_a_gif_has_every_frame_and_holds_the_last(tmp_path: Path):
    viz.export({"SGD": film(3)}, tmp_path / "film.gif", "film")
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == 3
        durations, pixels = [], []
        for k in range(3):
            image.seek(k)
            durations.append(image.info["duration"])
            pixels.append(np.asarray(image.convert("RGB")).copy())
    assert durations == [1000 // PER_SECOND] * 2 + [1000]
    assert all((a != b).any() for a, b in zip(pixels, pixels[1:], strict=False))


@pytest.mark.parametrize("kind", ["film", "animation"])
def test_an_mp4_has_every_frame_and_holds_the_last(tmp_path: Path, kind: str):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the extra film is not installed")
    target = tmp_path / "film.mp4"
    spec = build_film(film(3)) if kind == "film" else build_animation(build_path({"p": walk(3)}, plane()))
    viz.save(spec, target)
    reader = ffmpeg.read_frames(str(target))
    facts = next(reader)
    assert facts["codec"].startswith("h264") and facts["fps"] == PER_SECOND
    frames = [np.frombuffer(frame, np.uint8).astype(int) for frame in reader]
    assert len(frames) == 3 + 10
    assert np.abs(frames[0] - frames[-1]).max() > 30 and np.abs(frames[3] - frames[-1]).max() < 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4"]


def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "old.gif").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "quantize", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("full")))
    with pytest.raises(RuntimeError, match="full"):
        viz.export({"SGD": film(3)}, tmp_path / "old.gif", "film")
    assert (tmp_path / "old.gif").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
