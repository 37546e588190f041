"""The forms of records: their fields, where values come from, and several wordings each. Data only."""

from typing import NamedTuple, TypeAlias

Value: TypeAlias = "str | int | float | bool"


class Form(NamedTuple):
    fields: tuple[str, ...]
    sources: tuple[str, ...]  # one a field: a word list, `low-high`, `$`, `?`, full, time or date
    wordings: tuple[str, ...]  # the first is the one a record is turned into


def form(fields: str, *wordings: str) -> Form:
    """A form from `field:source` pairs and its wordings."""
    pairs = [field.split(":") for field in fields.split()]
    return Form(tuple(name for name, _ in pairs), tuple(source for _, source in pairs), wordings)


FORMS = (
    form(
        "name:full age:18-90 city:city job:job",
        "{name} is {age} years old, lives in {city} and works as a {job}.",
        "{name}, {age}, is a {job} from {city}.",
        "In {city} there is a {job} called {name}, who is {age} years old.",
        "At the age of {age}, {name} moved to {city} to work as a {job}.",
    ),
    form(
        "customer:name item:item quantity:2-60 price:$",
        "{customer} ordered {quantity} pieces of the item {item} at {price} each.",
        "An order by {customer}: {quantity} times the {item}, {price} a piece.",
        "For {price} each, {customer} bought {quantity} units of {item}.",
        "{quantity} units of {item} were sold to {customer}, each for {price}.",
    ),
    form(
        "event:sport day:day time:time place:place",
        "The {event} event takes place on {day} at {time} in the {place}.",
        "On {day} at {time}, everyone meets in the {place} for {event}.",
        "Come to the {place} for {event}! It starts at {time} on {day}.",
        "At {time} on {day} there will be {event} in the {place}.",
    ),
    form(
        "pet:animal name:name owner:full age:1-20",
        "{owner} has a {pet} named {name} that is {age} years old.",
        "The {pet} {name} is {age} years old and belongs to {owner}.",
        "{name} is a {pet} of {age} years, and its owner is {owner}.",
    ),
    form(
        "title:abstract author:full year:1850-2024 pages:40-900",
        'The book "{title}" was written by {author} in {year} and has {pages} pages.',
        '{author} published "{title}" in {year}; it has {pages} pages.',
        'In {year}, {author} wrote "{title}", a book of {pages} pages.',
    ),
    form(
        "city:city weather:weather high:12-39 low:0-11",
        "In {city} it will be {weather}, with a high of {high} and a low of {low} degrees.",
        "The forecast for {city} is {weather}, between {low} and {high} degrees.",
        "Expect a {weather} day in {city}: at most {high} degrees, at least {low}.",
    ),
    form(
        "from:city to:city vehicle:vehicle hours:1-48",
        "The trip from {from} to {to} by {vehicle} takes {hours} hours.",
        "By {vehicle}, it takes {hours} hours to get to {to} from {from}.",
        "Going from {from} to {to}? The {vehicle} needs {hours} hours.",
    ),
    form(
        "name:full email_ok:? member:? since:1990-2025",
        "{name} {email_ok?accepts|does not accept} email, {member?is|is not} a member, and came in {since}.",
        "Since {since} we know {name}, who {member?is|is not} a member and {email_ok?likes|dislikes} email.",
        "{name} ({since}) {member?is a member|is no member} and {email_ok?wants|wants no} email.",
    ),
    form(
        "item:clothing color:color size:1-50 price:$",
        "The {color} {item} in size {size} costs {price}.",
        "For {price} you get a {item} in {color}, size {size}.",
        "A size {size} {item}, colored {color}, is sold for {price}.",
    ),
    form(
        "student:full subject:subject grade:1-100 passed:?",
        "{student} got {grade} points in {subject} and {passed?passed|failed}.",
        "With {grade} points, {student} {passed?passed|did not pass} the exam in {subject}.",
        "In {subject}, {student} reached {grade} points and so {passed?passed|failed}.",
    ),
    form(
        "room:room object:furniture color:color count:1-12",
        "There are {count} units of {object} in the {room}, all of them {color}.",
        "The {room} holds {count} pieces of {object}, painted {color}.",
        "Painted {color}, {count} pieces of {object} stand in the {room}.",
    ),
    form(
        "dish:food drink:drink guest:name table:1-40",
        "{guest} at table {table} asked for {dish} and {drink}.",
        "Table {table}: {dish} with {drink} for {guest}.",
        "Bring {dish} and some {drink} to table {table}, where {guest} sits.",
    ),
    form(
        "sender:name receiver:name thing:keepsake date:date",
        "{sender} sent a {thing} to {receiver} on {date}.",
        "On {date}, {receiver} got a {thing} from {sender}.",
        "A {thing} was sent by {sender} on {date} and went to {receiver}.",
    ),
    form(
        "team:village rival:village goals:0-9 rival_goals:0-9",
        "{team} played against {rival} and it ended {goals} to {rival_goals}.",
        "The match of {team} against {rival} ended {goals} to {rival_goals}.",
        "{goals} to {rival_goals} was the score when {team} met {rival}.",
    ),
    form(
        "patient:full doctor:surname day:day time:time",
        "{patient} sees Doctor {doctor} on {day} at {time}.",
        "Doctor {doctor} will see {patient} at {time} on {day}.",
        "On {day} at {time}, {patient} has an appointment with Doctor {doctor}.",
    ),
    form(
        "name:name instrument:instrument years:1-30 teacher:full",
        "{name} has played the {instrument} for {years} years and learns from {teacher}.",
        "For {years} years, {teacher} has taught {name} the {instrument}.",
        "{teacher} is the {instrument} teacher of {name}, who has played for {years} years.",
    ),
    form(
        "country:country city:city stay:2-30 month:month",
        "In {month} we will spend {stay} days in {country}, starting in {city}.",
        "We start in {city} and stay in {country} for {stay} days in {month}.",
        "{stay} days in {country} are planned for {month}, with {city} first.",
    ),
    form(
        "worker:name tool:tool material:material hours:1-24",
        "{worker} used a {tool} on the {material} for {hours} hours.",
        "It took {worker} {hours} hours to shape the {material} with a {tool}.",
        "With a {tool}, {worker} worked the {material} for {hours} hours.",
    ),
)
