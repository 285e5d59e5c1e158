"""YouTube-VOS, Long Videos, MOSE, the test splits of DAVIS, and a plain folder, each in its official layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from examples import moving_square, write_davis
from PIL import Image

from datamodules.davis import Davis2017
from datamodules.folder import Folder
from datamodules.long_videos import LongVideos
from datamodules.mose import Mose
from datamodules.youtube_vos import YouTubeVos
from drift.errors import InputError, OptionError
from drift.image_files import write_mask

CLIP = moving_square(6)


def write_frames(folder, names, frames=CLIP.frames):
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames, strict=False):
        Image.fromarray(frame).save(folder / f"{name}.jpg")


def write_masks(folder, masks):
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        write_mask(folder / f"{name}.png", mask)


@pytest.fixture
def youtube_vos(tmp_path):
    """One video at 6 frames per second; object 2 appears on the third frame, whose mask also contains object 1."""
    root = tmp_path / "youtube"
    names = [f"{5 * n:05d}" for n in range(6)]
    write_frames(root / "valid" / "JPEGImages" / "a1b2", names)
    first, second = CLIP.truth[0], CLIP.truth[2].copy()
    second[40:46, 2:10] = 2
    write_masks(root / "valid" / "Annotations" / "a1b2", {names[0]: first, names[2]: second})
    objects = {
        "1": {"category": "dog", "frames": names[:5]},
        "2": {"category": "ball", "frames": [names[2], names[4]]},
    }
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": {"a1b2": {"objects": objects}}}))
    return root


class TestYouTubeVos:
    def test_objects_are_given_only_on_the_frame_where_they_appear(self, youtube_vos):
        data = YouTubeVos(youtube_vos)
        (clip,) = data.predict_dataloader()
        assert (clip.name, len(clip), clip.frames_per_second) == ("a1b2", 6, 6.0)
        assert list(clip.given) == [0, 2]
        assert set(np.unique(clip.given[0])) == {0, 1}
        assert set(np.unique(clip.given[2])) == {0, 2}, "object 1 is given on frame 0"
        assert not clip.truth

    def test_the_submission_contains_the_listed_frames(self, youtube_vos):
        submission = YouTubeVos(youtube_vos).submission()
        members = [member for _, _, member in submission.members()]
        assert members == [f"Annotations/a1b2/{5 * n:05d}.png" for n in range(5)]

    def test_all_frames_come_from_their_own_folder(self, youtube_vos):
        names = [f"{n:05d}" for n in range(26)]
        write_frames(youtube_vos / "valid_all_frames" / "JPEGImages" / "a1b2", names, [CLIP.frames[0]] * 26)
        data = YouTubeVos(youtube_vos, all_frames=True)
        (clip,) = data.predict_dataloader()
        assert (len(clip), clip.frames_per_second, list(clip.given)) == (26, 30.0, [0, 10])
        assert data.submission() == YouTubeVos(youtube_vos).submission()

    def test_root_may_be_the_folder_of_the_split(self, youtube_vos):
        assert YouTubeVos(youtube_vos / "valid").sequences == ["a1b2"]

    def test_missing_frames_and_masks_are_errors(self, youtube_vos):
        valid = youtube_vos / "valid"
        (valid / "Annotations" / "a1b2" / "00010.png").unlink()
        with pytest.raises(InputError, match=r"00010\.png: no such file"):
            YouTubeVos(youtube_vos).setup()
        (valid / "JPEGImages" / "a1b2" / "00020.jpg").unlink()
        with pytest.raises(InputError, match=r"meta\.json: lists frame 00020 of a1b2"):
            YouTubeVos(youtube_vos).setup()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            '{"videos": 3}',
            '{"videos": {"a1b2": {"objects": 3}}}',
            '{"videos": {"a1b2": {"objects": {"1": {"frames": []}}}}}',
        ],
    )
    def test_an_invalid_meta_file_is_an_error(self, youtube_vos, text):
        (youtube_vos / "valid" / "meta.json").write_text(text)
        with pytest.raises(InputError, match=r"meta\.json"):
            YouTubeVos(youtube_vos).setup()


class TestLongVideos:
    @pytest.fixture
    def root(self, tmp_path):
        names = [f"{n:05d}" for n in range(6)]
        write_frames(tmp_path / "JPEGImages" / "rat", names)
        write_masks(tmp_path / "Annotations" / "rat", {names[i]: CLIP.truth[i] for i in (0, 3, 5)})
        return tmp_path

    def test_all_annotated_frames_are_scored_including_the_last(self, root):
        data = LongVideos(root)
        (clip,) = data.predict_dataloader()
        assert (list(clip.given), list(clip.truth)) == ([0], [0, 3, 5])
        assert data.scores_last_frame
        assert data.submission() is None

    def test_the_list_names_the_videos(self, root):
        (root / "videos.txt").write_text("rat\nblueboy\n")
        assert LongVideos(root).sequences == ["rat", "blueboy"]
        with pytest.raises(InputError, match=r"JPEGImages/blueboy: no such folder"):
            LongVideos(root).setup()
        with pytest.raises(InputError, match=r"other\.txt: no such list"):
            LongVideos(root, split="other.txt").setup()

    def test_a_mask_without_a_frame_is_an_error(self, root):
        write_masks(root / "Annotations" / "rat", {"00009": CLIP.truth[0]})
        with pytest.raises(InputError, match=r"00009\.png: no frame of this name"):
            LongVideos(root).setup()


class TestMose:
    def test_a_split_with_only_first_masks_is_submitted(self, tmp_path):
        names = [f"{n:05d}" for n in range(6)]
        write_frames(tmp_path / "valid" / "JPEGImages" / "0a", names)
        write_masks(tmp_path / "valid" / "Annotations" / "0a", {names[0]: CLIP.truth[0]})
        data = Mose(tmp_path)
        (clip,) = data.predict_dataloader()
        assert (list(clip.given), len(clip.truth)) == ([0], 0)
        assert [member for _, _, member in data.submission().members()] == [f"0a/{n}.png" for n in names]

    def test_a_fully_annotated_split_is_scored_locally(self, tmp_path):
        names = [f"{n:05d}" for n in range(6)]
        write_frames(tmp_path / "train" / "JPEGImages" / "0a", names)
        write_masks(
            tmp_path / "train" / "Annotations" / "0a", dict(zip(names, CLIP.truth.values(), strict=True))
        )
        data = Mose(tmp_path, split="train")
        (clip,) = data.predict_dataloader()
        assert len(clip.truth) == 6
        assert data.submission() is None


def test_a_davis_test_split_is_submitted(tmp_path):
    root = write_davis(tmp_path, {"ant": CLIP})
    for path in sorted((root / "Annotations" / "480p" / "square").glob("*.png"))[1:]:
        path.unlink()
    (root / "ImageSets" / "2017" / "test-dev.txt").write_text("square\n")
    submission = Davis2017(root, split="test-dev").submission()
    assert [member for _, _, member in submission.members()] == [f"square/{n:05d}.png" for n in range(6)]
    assert Davis2017(root).submission() is None


class TestFolder:
    def test_masks_on_any_frame_and_optional_truth(self, tmp_path):
        names = [f"shot_{n}" for n in range(6)]
        write_frames(tmp_path / "frames" / "mine", names)
        write_masks(tmp_path / "masks" / "mine", {names[2]: CLIP.truth[2]})
        (clip,) = Folder(tmp_path).predict_dataloader()
        assert (clip.start, list(clip.given), len(clip.truth)) == (2, [2], 0)
        write_masks(tmp_path / "truth" / "mine", {names[4]: CLIP.truth[4]})
        (clip,) = Folder(tmp_path).predict_dataloader()
        assert list(clip.truth) == [4]

    def test_a_black_and_white_mask_is_one_object(self, tmp_path):
        write_frames(tmp_path / "frames" / "mine", ["a", "b"])
        for folder, name, index in (("masks", "a", 0), ("truth", "b", 1)):
            (tmp_path / folder / "mine").mkdir(parents=True)
            Image.fromarray(CLIP.truth[index] * 255).save(tmp_path / folder / "mine" / f"{name}.png")
        (clip,) = Folder(tmp_path).predict_dataloader()
        assert np.array_equal(clip.given[0], CLIP.truth[0])
        assert np.array_equal(clip.truth[1], CLIP.truth[1])

    def test_missing_folders_are_errors(self, tmp_path):
        with pytest.raises(InputError, match="frames: no such folder"):
            Folder(tmp_path).setup()
        write_frames(tmp_path / "frames" / "mine", ["a"])
        with pytest.raises(InputError, match="masks/mine: no such folder of masks"):
            Folder(tmp_path).setup()


@pytest.mark.parametrize("datamodule", [YouTubeVos, LongVideos, Mose])
def test_data_sets_without_a_public_archive_say_how_to_get_them(datamodule, tmp_path):
    with pytest.raises(InputError, match=r"cannot be downloaded automatically; \w+"):
        datamodule(tmp_path / "none", download=True)
    with pytest.raises(OptionError, match="a folder that exists"):
        datamodule(tmp_path / "none")
