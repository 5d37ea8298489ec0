"""Vocabulary and training rows of the demo model: facts and plain text turned into word-piece numbers.

Shapes: N rows of L tokens, a vocabulary of V word pieces, C countries.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from string import Formatter

import numpy as np
from facts import (
    CAPITAL_FORMS,
    CITY_FORMS,
    COUNTRY_FORMS,
    ENDINGS,
    LANDMARK_FORMS,
    OPENINGS,
    Country,
    Landmark,
    is_one_word,
    plain,
)
from numpy.typing import NDArray
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~–—£°"
SUFFIX_PIECES = 600

# How often a field is the one hidden from the model, against the other fields of the same sentence.
ANSWER_WEIGHTS = {"capital": 6.0, "city": 6.0, "landmark": 1.0, "country": 2.0}
ADDED_CLAUSE_SHARE = 0.3
PAIR_SHARE = 0.25

# `answer` of a row: 0 for a token that is not the answer, 1 for one that is, and 2 + c where the answer is a
# one-word city of country number c: there a part of the label goes to that country's other cities.
NOT_ANSWER, ANSWER, FIRST_COUNTRY = 0, 1, 2


@dataclass(frozen=True)
class Fact:
    """One fact told in one form: values for the form's fields, and the field that the model must find."""

    form: str
    values: dict[str, str]
    answer: str
    country: int  # index into the list of countries


@dataclass(frozen=True)
class FactRows:
    """Rows `[CLS] fact [SEP]` or `[CLS] fact [SEP] fact [SEP]`, padded; all arrays are (N, L)."""

    ids: NDArray[np.int16]
    answer: NDArray[np.int16]
    segment: NDArray[np.int8]  # token type: 1 in the second fact


# --- text and vocabulary ------------------------------------------------------------------------------------


def clean_text(text: str) -> list[str]:
    """Paragraphs of the text; undoes WikiText's marks, as in `10 @,@ 000` and `role @-@ playing`."""
    text = re.sub(r" @(.)@ ", r"\1", text)
    return [line for line in (line.strip() for line in text.splitlines()) if line]


def split_words(text: str) -> list[str]:
    """Lower-cased words and punctuation, split as BERT's tokenizer does before word pieces."""
    normal = BertNormalizer(lowercase=True).normalize_str(text)
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal)]


def words_of_facts(countries: list[Country], landmarks: list[Landmark]) -> set[str]:
    """Every word of the facts and of the training forms: each gets a word piece of its own."""
    texts = [*CAPITAL_FORMS, *CITY_FORMS, *LANDMARK_FORMS, *COUNTRY_FORMS, *OPENINGS, *ENDINGS]
    texts = [re.sub(r"\{\w+\}", " ", text) for text in texts]
    for country in countries:
        texts += [country.name, country.capital, country.continent, country.currency]
        texts += [name for name, _ in country.cities]
    for landmark in landmarks:
        texts += [landmark.name, landmark.city]
    return {word for text in texts for word in split_words(text)}


def build_vocabulary(paragraphs: list[str], required: set[str], size: int) -> list[str]:
    """Exactly `size` word pieces: specials, characters, required words, frequent words, frequent endings."""
    counts = Counter(word for paragraph in paragraphs for word in split_words(paragraph))
    pieces = [*SPECIALS, *CHARACTERS, *(f"##{letter}" for letter in CHARACTERS if letter.isalnum())]
    pieces += sorted(required - set(pieces))
    known = set(pieces)
    frequent = sorted(counts.keys() - known, key=lambda word: (-counts[word], word))
    room = size - len(pieces) - SUFFIX_PIECES
    if room < 0 or len(frequent) < room:
        raise ValueError(f"{len(pieces)} required pieces and {len(frequent)} words do not fill {size}")
    pieces += frequent[:room]
    endings: Counter[str] = Counter()
    for word in frequent[room:]:
        for length in range(2, min(6, len(word))):
            endings[f"##{word[-length:]}"] += counts[word] * (length - 1)  # pieces saved
    pieces += sorted(endings, key=lambda ending: (-endings[ending], ending))[:SUFFIX_PIECES]
    if len(pieces) != size or len(set(pieces)) != size:
        raise ValueError(f"the text is too short for a vocabulary of {size} word pieces")
    return pieces


# --- facts --------------------------------------------------------------------------------------------------


class FactMaker:
    """Draws facts at random and writes them as token rows."""

    def __init__(self, countries: list[Country], landmarks: list[Landmark], tokenizer: BertTokenizer, seed: int):
        """The same seed gives the same facts."""
        self.countries = countries
        self.landmarks = landmarks
        self.tokenizer = tokenizer
        self.random = random.Random(seed)
        self.number = {country.name: index for index, country in enumerate(countries)}
        self.with_capital = [country for country in countries if country.capital]
        self.with_cities = [country for country in countries if len(country.cities) > 1]
        self.pieces: dict[str, list[int]] = {}

    def _tokens(self, text: str) -> list[int]:
        if text not in self.pieces:
            self.pieces[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.pieces[text]

    def _capital(self) -> tuple[str, dict[str, str]]:
        country = self.random.choice(self.with_capital)
        values = {"country": country.name, "capital": country.capital, "continent": country.continent}
        return self.random.choice(CAPITAL_FORMS), values

    def _city(self) -> tuple[str, dict[str, str]]:
        country = self.random.choice(self.with_cities)
        weights = [population**0.5 for _, population in country.cities]
        city, other = (name for name, _ in self.random.choices(country.cities, weights, k=2))
        values = {
            "country": country.name,
            "city": city,
            "other_city": other,
            "continent": country.continent,
        }
        return self.random.choice(CITY_FORMS), values

    def _landmark(self) -> tuple[str, dict[str, str]]:
        landmark = self.random.choice(self.landmarks)
        values = {"landmark": landmark.name, "city": landmark.city, "country": landmark.country}
        return self.random.choice(LANDMARK_FORMS), values

    def _country(self) -> tuple[str, dict[str, str]]:
        country = self.random.choice(self.countries)
        values = {"country": country.name, "continent": country.continent}
        if country.currency:
            values["currency"] = country.currency
        if country.neighbours:
            values["neighbour"] = self.random.choice(country.neighbours)
        possible = [form for form in COUNTRY_FORMS if set(fields_of(form)) <= values.keys()]
        return self.random.choice(possible), values

    def fact(self) -> Fact:
        """A random fact in a random form, perhaps with an opening or an ending around it."""
        kinds = (self._capital, self._city, self._landmark, self._country)
        form, values = self.random.choices(kinds, (0.4, 0.3, 0.15, 0.15))[0]()
        fields = fields_of(form)
        answer = self.random.choices(fields, [ANSWER_WEIGHTS.get(field, 1.0) for field in fields])[0]
        if self.random.random() < ADDED_CLAUSE_SHARE:
            form = self.random.choice(OPENINGS) + form
        if self.random.random() < ADDED_CLAUSE_SHARE:
            form += self.random.choice(ENDINGS)
        return Fact(form + ".", values, answer, self.number[values["country"]])

    def encode(self, fact: Fact) -> tuple[list[int], list[int]]:
        """Token numbers and answer codes of one fact, without [CLS] and [SEP]."""
        ids: list[int] = []
        answer: list[int] = []
        for literal, field, _, _ in Formatter().parse(fact.form):
            words = self._tokens(literal)
            ids += words
            answer += [NOT_ANSWER] * len(words)
            if field is None:
                continue
            value = fact.values[field]
            words = self._tokens(value)
            code = NOT_ANSWER
            if field == fact.answer:
                spread = field in ("capital", "city") and is_one_word(value)
                code = FIRST_COUNTRY + fact.country if spread else ANSWER
            ids += words
            answer += [code] * len(words)
        return ids, answer

    def rows(self, count: int, length: int) -> FactRows:
        """`count` rows of `length` tokens; a second fact is left out where it does not fit."""
        rows = FactRows(
            ids=np.full((count, length), PAD, np.int16),
            answer=np.zeros((count, length), np.int16),
            segment=np.zeros((count, length), np.int8),
        )
        for row in range(count):
            ids, answer = self.encode(self.fact())
            ids, answer = [CLS, *ids, SEP], [0, *answer, 0]
            first = len(ids)
            if self.random.random() < PAIR_SHARE:
                more_ids, more_answer = self.encode(self.fact())
                if first + len(more_ids) < length:
                    ids, answer = [*ids, *more_ids, SEP], [*answer, *more_answer, 0]
            if len(ids) > length:
                raise ValueError(f"a fact has {len(ids)} tokens, more than a row's {length}")
            rows.ids[row, : len(ids)] = ids
            rows.answer[row, : len(ids)] = answer
            rows.segment[row, first : len(ids)] = 1
        return rows


def fields_of(form: str) -> list[str]:
    """The names of a form's fields, in order, each once."""
    return list(dict.fromkeys(field for _, field, _, _ in Formatter().parse(form) if field))


def token_stream(
    paragraphs: list[str], tokenizer: BertTokenizer, maker: FactMaker, fact_share: float, seed: int
) -> NDArray[np.int16]:
    """One long line of tokens, (tokens,): all paragraphs shuffled, facts between their sentences."""
    order = random.Random(seed)
    shuffled = order.sample(paragraphs, len(paragraphs))
    stream: list[int] = []
    for paragraph in shuffled:
        stream += tokenizer.encode(paragraph, add_special_tokens=False, verbose=False)
        while order.random() < fact_share:
            stream += maker.encode(maker.fact())[0]
    return np.array(stream, np.int16)


def city_distributions(countries: list[Country], tokenizer: BertTokenizer) -> NDArray[np.float32]:
    """(FIRST_COUNTRY + C, V): for each answer code the share of each word piece; rows 0 and 1 are zero."""
    shares = np.zeros((FIRST_COUNTRY + len(countries), len(tokenizer)), np.float32)
    for number, country in enumerate(countries):
        for name, population in country.cities:
            piece = tokenizer.convert_tokens_to_ids(plain(name))
            shares[FIRST_COUNTRY + number, piece] += population**0.5
        total = shares[FIRST_COUNTRY + number].sum()
        if total > 0:
            shares[FIRST_COUNTRY + number] /= total
    return shares
