"""Word lists from files, libraries and the caller: their union, what is left out, and what is refused."""

import open_clip
import pytest
import wordfreq
from timm.data import ImageNetInfo

from lwta.dissect.words import WordList, read_words
from lwta.errors import InputError
from models.words import LISTS


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return str(path)


def refusal(*args):
    with pytest.raises(InputError) as refused:
        read_words(*args)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- what is read --------------------------------------------------------------------------------


def test_a_file_holds_a_concept_per_line(tmp_path):
    path = write(tmp_path / "w.txt", "red\n a dog, running \nblé\n")
    assert read_words(path) == WordList(["red", "a dog, running", "blé"], 0, 0)
    assert read_words([path]).names == ["red", "a dog, running", "blé"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_the_mark_of_an_editor_are_no_part_of_a_word(tmp_path, end):
    path = tmp_path / "w.TXT"
    path.write_bytes(end.join(["red", "blue"]).encode("utf-8-sig"))
    assert read_words(str(path)) == WordList(["red", "blue"], 0, 0)


def test_blanks_and_duplicates_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "w.txt", "\nred\n  \nblue\n red\nRed\nblue\n\n")
    assert read_words(path) == WordList(["red", "blue", "Red"], blanks=3, duplicates=2)


def test_a_union_keeps_the_order_and_counts_what_comes_again(tmp_path):
    first, second = write(tmp_path / "a.txt", "owl\nred\n"), write(tmp_path / "b.txt", "red\n\nthe\nowl\n")
    found = read_words([first, second, "mine"], {"mine": lambda: ("the", "fox", "")})
    assert found == WordList(["owl", "red", "the", "fox"], blanks=2, duplicates=3)
    assert read_words([second, first]).names == ["red", "the", "owl"]


def test_one_word_of_each_list_may_do():
    assert read_words(["a", "b"], {"a": lambda: ["x"], "b": lambda: ["y"]}).names == ["x", "y"]


def test_only_the_lists_asked_for_are_read():
    def never():
        raise AssertionError

    assert read_words("a", {"a": lambda: ["x", "y"], "b": never}).names == ["x", "y"]


# --- libraries' lists ----------------------------------------------------------------------------


def test_the_class_names_of_imagenet_hold_two_duplicates():
    found = read_words("imagenet")
    assert (len(found.names), found.blanks, found.duplicates) == (998, 0, 2)
    names = open_clip.IMAGENET_CLASSNAMES
    assert found.names == [name for k, name in enumerate(names) if name not in names[:k]]


@pytest.mark.parametrize("count", [2, 1_000, 20_000])
def test_the_commonest_english_words_are_as_many_as_asked_for_and_hold_a_letter(count):
    found = read_words(f"english:{count}")
    assert (len(found.names), found.blanks, found.duplicates) == (count, 0, 0)
    commonest = wordfreq.top_n_list("en", count + 1_000)
    taken = commonest[: commonest.index(found.names[-1]) + 1]
    assert [word for word in taken if any(letter.isalpha() for letter in word)] == found.names
    assert (len(taken) > count) == (count > 2)


@pytest.mark.parametrize(
    ("name", "kept", "duplicates"), [("imagenet12k", 10_966, 855), ("imagenet22k", 20_099, 1_742)]
)
def test_the_first_lemma_of_each_class_of_a_larger_imagenet(name, kept, duplicates):
    found = read_words(name, LISTS)
    assert (len(found.names), found.blanks, found.duplicates) == (kept, 0, duplicates)
    words = LISTS[name]()
    info = ImageNetInfo(name)
    assert len(words) == kept + duplicates == info.num_classes()
    for k in (0, 2, 500, len(words) - 1):
        assert info.index_to_description(k).split(", ")[0] == words[k]


def test_imagenet_and_english_share_words():
    both = read_words(["imagenet", "english:20000"])
    assert len(both.names) + both.duplicates == 21_000
    assert both.duplicates > 2
    assert both.names[:998] == read_words("imagenet").names


# --- refusals ------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_nearest_and_the_kinds():
    assert refusal("imagenet12", LISTS) == (
        "'imagenet12' names no word list, the nearest is imagenet12k; "
        "give one of a .txt file, english:N, imagenet, imagenet12k, imagenet22k; words of your own go into a "
        ".txt file, one a line"
    )
    assert "the nearest is imagenet; give one of a .txt file, english:N, imagenet" in refusal("imgenet")
    assert "'words.csv' names no word list" in refusal("words.csv")
    assert "'' names no word list" in refusal("")


@pytest.mark.parametrize("number", ["", "0", "-5", "1.5", "many", "²", "٣"])
def test_a_number_of_english_words_that_is_none_is_refused(number):
    assert f"english:{number} names no number of words" in refusal(f"english:{number}")


def test_more_english_words_than_there_are_is_refused_with_their_number():
    message = refusal("english:10000000")
    held = int(message.split()[2].replace(",", ""))
    assert message == f"wordfreq holds {held:,} English words and not 10,000,000; ask for fewer"
    assert len(read_words(f"english:{held}").names) == held


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "no.txt", tmp_path / "folder.txt"):
        assert refusal(str(path)) == f"there is no word list {path}; give a .txt file with a concept per line"


def test_a_file_in_another_encoding_is_refused(tmp_path):
    assert "is not text in UTF-8; save it as such" in refusal(write(tmp_path / "w.txt", "café\nb", "latin-1"))
    assert "is not text in UTF-8" in refusal(write(tmp_path / "w.txt", "a\nb", "utf-16"))


@pytest.mark.parametrize("text", ["", "\n\n", "red", "red\nred\n"])
def test_fewer_than_two_concepts_are_refused(tmp_path, text):
    held = len(set(text.split()))
    path = write(tmp_path / "w.txt", text)
    assert refusal(path).startswith(f"the word list {path} holds {held} concepts; labels need at least two")


def test_no_list_at_all_is_refused():
    assert "the word list (none) holds 0 concepts" in refusal([])
