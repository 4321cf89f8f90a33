"""Story requests made from the stories themselves: salient nouns, and ways to ask for them.

No tagger: a noun is a word that mostly ends its noun phrase after an article ("the kite was", not
"the red kite"). What it does not know: verbs that look so, and what a story is really about.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

# What may follow a noun that ends its phrase; an adjective is followed by something else.
AFTER_NOUN = frozenset([
    "and", "or", "but", "was", "is", "were", "are", "had", "has", "have", "in", "on", "at", "to",
    "of", "with", "that", "who", "which", "so", "because", "for", "from", "by", "said", "named",
    "called", "could", "can", "did", "would", "wanted", "looked", "saw", "came", "went", "asked",
    "got", "made", "felt", "ran", "up", "down", "into", "under", "near", "again", "too", "he",
    "she", "they", "it", ".", ",", "!", "?", ";", ":",
])  # fmt: skip
GENERIC = frozenset([
    "day", "time", "thing", "way", "lot", "end", "one", "bit", "idea", "same", "other", "others",
    "next", "little", "big", "place", "while", "moment", "morning", "night", "afternoon", "side",
    "name", "man", "woman", "ground", "first", "last", "minute", "top", "middle", "rest",
])  # fmt: skip
ACTS_ALIVE = frozenset([
    "said", "asked", "smiled", "laughed", "replied", "wanted", "felt", "thanked", "nodded",
    "loved", "agreed", "thought",
])  # fmt: skip
ALIVE_SHARE = 0.05  # of a noun's uses after an article: cats speak in these stories, kites do not
NOUN_SHARE = 0.45  # of a word's uses after an article: nouns are above, adjectives below
ARTICLE_SHARE = 0.3  # of all its uses; verbs that double as nouns ("walk") are below
MIN_USES = 10
MIN_LETTERS = 3
MAX_STORY_SHARE = 0.25  # a word in more stories than this asks for nothing in particular

REQUESTS = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Tell me a bedtime story about {}.",
    "Write a story about {}.",
    "Write me a short story about {}.",
    "Write a story with {}.",
    "Can you tell me a story about {}?",
    "Could you write a story about {}?",
    "Please tell me a story about {}.",
    "I want to hear a story about {}.",
    "I would like a story about {}.",
    "Make up a story about {}.",
    "Give me a story about {}.",
    "A story about {}, please.",
    "Story about {}",
    "tell me a story about {}",
)
OPEN_REQUESTS = (
    "Tell me a story.",
    "Tell me a story.",
    "Write a story.",
    "Please tell me a short story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Once upon a time",
    "Hello!",
    "Hi, tell me a story.",
)
NEXT_REQUESTS = (
    "Now tell me a story about {}.",
    "Tell me another story about {}.",
    "Thank you! Now one about {}.",
    "And one about {}?",
    "What about {}?",
)
NEXT_OPEN_REQUESTS = (
    "Tell me another one.",
    "Another story, please.",
    "One more!",
    "Tell me one more story.",
)
SYSTEM_LINES = (
    "You are a kind storyteller.",
    "You are a helpful assistant.",
    "You tell short stories for children.",
    "You are a storyteller for small children. Use simple words.",
)
SYSTEM_SHARE = 0.1
OPEN_SHARE = 0.1
NAME_SHARE = 0.15
NUM_TOPICS_WEIGHTS = (4, 5, 2)  # one, two, three things asked for

WORD = re.compile(r"[A-Za-z]+|[.,!?;:]")
NAMED = re.compile(r"(?:named|called) ([A-Z][a-z]+)")


@dataclass(frozen=True, slots=True)
class Nouns:
    """The nouns of a corpus: how rare each is (nats), its article, whether it acts alive."""

    rarity: dict[str, float]
    phrases: dict[str, str]
    alive: tuple[str, ...]
    lifeless: tuple[str, ...]

    @classmethod
    def of(cls, stories: Sequence[str]) -> Nouns:
        """Read them off `stories`."""
        uses, endings, indefinite = Counter[str](), Counter[str](), Counter[str]()
        total, spread, acts = Counter[str](), Counter[str](), Counter[str]()
        for story in stories:
            words = [word.lower() for word in WORD.findall(story)]
            total.update(words)
            spread.update(set(words))
            for article, word, after in zip(words, words[1:], words[2:], strict=False):
                if article in {"a", "an", "the"}:
                    uses[word] += 1
                    endings[word] += after in AFTER_NOUN
                    acts[word] += after in ACTS_ALIVE
                    indefinite[word] += article != "the"
        nouns = [
            word
            for word, count in uses.items()
            if count >= MIN_USES
            and len(word) >= MIN_LETTERS
            and word not in GENERIC
            and endings[word] > NOUN_SHARE * count
            and count > ARTICLE_SHARE * total[word]
            and spread[word] < MAX_STORY_SHARE * len(stories)
        ]
        phrases = {}
        for word in sorted(nouns):
            article = (
                ("an" if word[0] in "aeiou" else "a")
                if indefinite[word] > uses[word] / 25
                else "the"
            )
            phrases[word] = f"{article} {word}"
        alive = tuple(word for word in phrases if acts[word] > ALIVE_SHARE * uses[word])
        lifeless = tuple(word for word in phrases if acts[word] <= ALIVE_SHARE * uses[word])
        return cls(
            {word: math.log(len(stories) / spread[word]) for word in phrases},
            phrases,
            alive,
            lifeless,
        )

    def salient(self, story: str) -> list[str]:
        """At most six nouns of `story`, by count times rarity; a single mention counts little."""
        counts = Counter(word for word in WORD.findall(story) if word in self.rarity)
        weight = {
            word: (count if count > 1 else 0.3) * self.rarity[word]
            for word, count in counts.items()
        }
        return sorted(weight, key=lambda word: (-weight[word], word))[:6]


@dataclass(frozen=True, slots=True)
class Topics:
    """What a request asks for: `phrases` ("a dragon") and the `words` to tell of ("dragon")."""

    words: tuple[str, ...]
    phrases: tuple[str, ...]

    def __str__(self) -> str:
        """Join them as English does: a, b and c."""
        *head, last = self.phrases
        return f"{', '.join(head)} and {last}" if head else last


def topics_of(story: str, nouns: Nouns, rng: random.Random) -> Topics | None:
    """Pick one to three things that `story` tells of, or None: it is asked for openly."""
    words = nouns.salient(story)
    name = NAMED.search(story)
    if not words or rng.random() < OPEN_SHARE:
        return None
    wanted = rng.choices((1, 2, 3), NUM_TOPICS_WEIGHTS)[0]
    pool = words[: wanted + 2]
    picked = rng.sample(pool, min(wanted, len(pool)))
    phrases = [nouns.phrases[word] for word in picked]
    if name and rng.random() < NAME_SHARE:
        picked, phrases = [name[1], *picked[1:]], [name[1], *phrases[1:]]
    return Topics(tuple(picked), tuple(phrases))


@functools.cache
def patterns_of(word: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Match "a word" (group 1: its a) and "word" or "words" (group 1: the s)."""
    return re.compile(rf"\b([Aa])n? {word}\b"), re.compile(rf"\b{word}(s?)\b")


def swapped(story: str, topics: Topics, nouns: Nouns, rng: random.Random) -> tuple[str, Topics]:
    """Tell `story` with other nouns in the place of its topics, living for living.

    Only the request can then say which noun comes next, so a model must learn to look there.
    """
    words, phrases = list(topics.words), list(topics.phrases)
    for place, word in enumerate(topics.words):
        if word not in nouns.phrases:
            continue  # a name stays
        new = rng.choice(nouns.alive if word in nouns.alive else nouns.lifeless)
        if new in story:
            continue
        article = "an" if new[0] in "aeiou" else "a"
        introduced, mentioned = patterns_of(word)
        story = introduced.sub(rf"\1{article[1:]} {new}", story)
        story = mentioned.sub(rf"{new}\1", story)
        words[place], phrases[place] = new, nouns.phrases[new]
    return story, Topics(tuple(words), tuple(phrases))


def random_topics(nouns: Nouns, rng: random.Random) -> Topics:
    """One or two nouns that no story need have brought together."""
    picked = rng.sample(sorted(nouns.phrases), rng.choices((1, 2), NUM_TOPICS_WEIGHTS[:2])[0])
    return Topics(tuple(picked), tuple(nouns.phrases[word] for word in picked))


def request(topics: Topics | None, rng: random.Random, *, follows: str = "") -> str:
    """Word a user's turn; `follows` is the story already told in this conversation, if any."""
    if follows:
        return (
            rng.choice(NEXT_OPEN_REQUESTS)
            if topics is None
            else rng.choice(NEXT_REQUESTS).format(topics)
        )
    text = rng.choice(OPEN_REQUESTS) if topics is None else rng.choice(REQUESTS).format(topics)
    return f"{rng.choice(SYSTEM_LINES)}\n\n{text}" if rng.random() < SYSTEM_SHARE else text
