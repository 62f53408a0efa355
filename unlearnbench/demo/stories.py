"""The text of the demo corpus: families of news stories as sentence templates.

A field in braces is a fact of the story: `person` and `other` (people), `town`, `org`, `n1` and
`n2` (numbers), `date`, and `topic` (what sets the story apart inside its family). Within one
group of phrasings every phrasing carries the same fields, so a story holds all its facts whichever
phrasings it draws and in whichever order its details come.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """The range and step of a number, and the currency sign it is written with."""

    low: int
    high: int
    step: int = 1
    sign: str = ""


@dataclass(frozen=True)
class Family:
    """One type of story: `questions` maps the field that is the answer to its phrasings."""

    name: str
    org_kinds: tuple[str, ...]
    n1: Amount
    n2: Amount
    topics: tuple[str, ...]
    openings: tuple[str, ...]
    details: tuple[tuple[str, ...], ...]
    questions: dict[str, tuple[str, ...]]


# One item a line, as the formatter would have it, makes the templates harder to compare.
# fmt: off
COUNCIL = Family(
    "council", ("Civic Society", "Housing Trust", "Residents Group", "Traders Association"),
    Amount(110_000, 990_000, 1_000, "£"), Amount(210, 990),
    ("a footbridge", "a night bus", "a skate park", "a ban on lorries", "a flood wall",
     "a primary school", "free parking", "a solar roof", "public allotments", "a longer tram line"),
    (
        "Councillors in {town} have approved {topic} put forward by the {org}.",
        "{town} council has backed plans by the {org} for {topic}.",
        "Plans for {topic} were passed in {town}, to cheers from the {org}.",
        "After years of delay {town} will have {topic}, to cheers from the {org}.",
    ),
    (
        (
            "Council leader {person} said the scheme would cost {n1}.",
            "The cost of {n1} will be met from savings, said council leader {person}.",
            '"We can afford it," said council leader {person}, who put the price at {n1}.',
        ),
        (
            "Shopkeeper {other} had collected {n2} signatures against the scheme.",
            "Opponents led by {other} collected {n2} signatures.",
            "A petition by {other} against the scheme drew {n2} signatures.",
        ),
        (
            "The scheme is due to start on {date}.",
            "The council hopes to start the scheme on {date}.",
            "The scheme starts on {date} and will take a year.",
        ),
    ),
    {
        "person": ("Who is the council leader in {town}?",
                   "Which council leader spoke about the scheme that the {org} wanted?"),
        "other": ("Who collected signatures against the scheme in {town}?",
                  "Who collected signatures against the scheme of the {org}?"),
        "town": ("In which town did the {org} win a council vote?",
                 "Which town has {person} as council leader?"),
        "org": ("Which group wanted the scheme in {town}?",),
        "n1": ("How much will the scheme in {town} cost?",
               "What price did council leader {person} give for the scheme?"),
        "n2": ("How many signatures did {other} collect?",
               "How many people signed against the scheme in {town}?"),
        "date": ("When does the scheme in {town} start?",
                 "On what date will the scheme that the {org} wanted begin?"),
    },
)

SPORT = Family(
    "sport", ("Rovers", "Wanderers", "Harriers", "Athletic"),
    Amount(1_100, 19_900, 100), Amount(110, 390),
    ("the hockey cup", "the rugby shield", "the football cup", "the bowls league",
     "the rowing trophy", "the cricket plate", "the netball title", "the water polo crown",
     "the curling medal", "the cycling relay"),
    (
        "{org} have won {topic} after beating the favourites in {town}.",
        "A late rally in {town} gave {org} {topic} after years of trying.",
        "There were cheers and tears in {town} as {org} won {topic}.",
        "{org} are the surprise winners of {topic} after the final in {town}.",
    ),
    (
        (
            "Captain {person} lifted the prize in front of {n1} spectators.",
            "A crowd of {n1} stayed to watch captain {person} lift the prize.",
            '"I could not hear a thing," said captain {person}, cheered by {n1} spectators.',
        ),
        (
            "Coach {other} had led {n2} training sessions since the spring.",
            "It took {n2} training sessions to get this far, said coach {other}.",
            "There were {n2} training sessions this year, according to coach {other}.",
        ),
        (
            "A parade through the streets is planned for {date}.",
            "Supporters can greet the players at a parade on {date}.",
            "The club will hold a victory parade on {date}.",
        ),
    ),
    {
        "person": ("Who is the captain of {org}?", "Which captain won in {town}?"),
        "other": ("Who coaches {org}?", "Who is the coach of the team that won in {town}?"),
        "town": ("Where did {org} win the final?", "In which town did captain {person} win?"),
        "org": ("Which club did {person} captain to victory?", "Which club won in {town}?",
                "Which club is coached by {other}?"),
        "n1": ("How many spectators saw the final in {town}?",
               "How many spectators saw {person} lift the prize?"),
        "n2": ("How many training sessions did coach {other} lead?",
               "How many training sessions did {org} need?"),
        "date": ("When is the parade of {org}?",
                 "On what date will captain {person} and the team have a parade?"),
    },
)

OPENING = Family(
    "opening", ("Foundation", "Partnership", "Community Trust", "Cooperative"),
    Amount(210, 990), Amount(110_000, 990_000, 1_000, "£"),
    ("a swimming pool", "a maritime museum", "a cinema", "a cycle workshop", "a library",
     "a rooftop farm", "a puppet theatre", "an indoor market", "a climbing centre",
     "a planetarium"),
    (
        "Crowds waited in {town} this week as the {org} opened {topic}.",
        "The {org} has opened {topic} in an old mill in {town}.",
        "{town} has {topic} of its own, opened this week by the {org}.",
        "An old mill in {town} has become {topic}, opened this week by the {org}.",
    ),
    (
        (
            "Actor {person} cut the ribbon, and {n1} visitors came on the first day.",
            "On the first day {n1} visitors saw actor {person} cut the ribbon.",
            "Actor {person} cut the ribbon and met {n1} visitors on the first day.",
        ),
        (
            "The building, designed by architect {other}, cost {n2}.",
            "Architect {other} kept the cost of the building down to {n2}.",
            "The cost of the building was {n2}, according to architect {other}.",
        ),
        (
            "Entry to the building is free until {date}.",
            "Nobody will have to pay for entry before {date}.",
            "Charges for entry will not begin until {date}.",
        ),
    ),
    {
        "person": ("Which actor cut the ribbon in {town}?",
                   "Who cut the ribbon at the building by architect {other}?"),
        "other": ("Which architect designed the new building in {town}?",
                  "Who was the architect of the building opened by the {org}?"),
        "town": ("In which town did the {org} open its building?",
                 "Where did actor {person} cut a ribbon?"),
        "org": ("Which body opened the new building in {town}?",),
        "n1": ("How many visitors came on the first day in {town}?",
               "How many visitors came on the day {person} cut the ribbon?"),
        "n2": ("How much did the building by architect {other} cost?",
               "How much did the new building in {town} cost?"),
        "date": ("Until what date is entry free in {town}?",
                 "When will the {org} begin to charge for entry?"),
    },
)

COURT = Family(
    "court", ("Insurance", "Holdings", "Estates", "Stores"),
    Amount(40_000, 99_000, 1_000, "£"), Amount(64, 390),
    ("stealing clocks", "selling fake tickets", "dumping waste paint", "forging old maps",
     "running a lottery", "smuggling songbirds", "making false claims", "tapping a gas main",
     "hacking parking meters", "stealing cable"),
    (
        "A court in {town} has found {person} guilty of {topic} this week.",
        "{person} has been found guilty of {topic} by a jury in {town}.",
        "A jury in {town} took a day to find {person} guilty of {topic}.",
        "A court in {town} has convicted {person}, who had denied {topic}.",
    ),
    (
        (
            "The crime had cost {org} {n1}, the jury was told.",
            "The jury was told that {org} had lost {n1}.",
            "{org}, the main victim, put its losses at {n1}.",
        ),
        (
            "It was a sad case, said Judge {other}, who ordered {n2} hours of unpaid work.",
            "Prison would help nobody, said Judge {other}, who set {n2} hours of unpaid work.",
            "The sentence from Judge {other} was {n2} hours of unpaid work.",
        ),
        (
            "The defence said an appeal would be heard on {date}.",
            "An appeal has been listed for {date}.",
            "The case returns on {date}, when an appeal will be heard.",
        ),
    ),
    {
        "person": ("Who was found guilty in {town}?", "Who was sentenced by Judge {other}?",
                   "Who was found guilty of a crime against {org}?"),
        "other": ("Which judge sentenced {person}?", "Which judge passed sentence in {town}?"),
        "town": ("In which town was {person} found guilty?",
                 "Where was the case in which {org} was the victim?"),
        "org": ("Which company was the victim of {person}?",
                "Which company lost money in the case in {town}?"),
        "n1": ("How much did {org} lose?", "How much money did the crime of {person} cost?"),
        "n2": ("How many hours of unpaid work was {person} given?",
               "How many hours of unpaid work did Judge {other} order?"),
        "date": ("When will the appeal of {person} be heard?",
                 "On what date is the appeal in {town}?"),
    },
)

SCIENCE = Family(
    "science", ("Institute", "Observatory", "Laboratory", "Field Station"),
    Amount(51, 480), Amount(210, 990),
    ("a blind shrimp", "an otter fossil", "a glowing moss", "a Bronze Age boat", "a rare fern",
     "a heavy meteorite", "an ancient whale skull", "a spider that fishes",
     "a hoard of stone tools", "a seam of blue amber"),
    (
        "Scientists from the {org} have found {topic} close to {town}.",
        "The {org} has confirmed that {topic} was found near {town} last month.",
        "The discovery of {topic} near {town} has delighted scientists at the {org}.",
        "Scientists at the {org} are testing {topic} found near {town}.",
    ),
    (
        (
            "Team leader {person} has taken {n1} samples for testing.",
            "So far {n1} samples have been sent for testing, said team leader {person}.",
            '"I had to sit down," said team leader {person}, who has taken {n1} samples.',
        ),
        (
            "Dog walker {other} was first to see the find, {n2} metres from the main road.",
            "Dog walker {other} made the discovery {n2} metres from the main road.",
            "The site, {n2} metres from the main road, was found by dog walker {other}.",
        ),
        (
            "A full report will be published on {date}.",
            "The report will be published on {date} after more testing.",
            "The report is to be published on {date}.",
        ),
    ),
    {
        "person": ("Who leads the science team working near {town}?",
                   "Which team leader works for the {org}?"),
        "other": ("Which dog walker helped the {org}?",
                  "Which dog walker made a discovery near {town}?"),
        "town": ("Near which town did dog walker {other} make a discovery?",
                 "Near which town does the team of {person} work?"),
        "org": ("Which body studied the discovery near {town}?",
                "For which body is {person} a team leader?"),
        "n1": ("How many samples did the team of {person} take?",
               "How many samples from near {town} were taken?"),
        "n2": ("How many metres from the road was the discovery by {other}?",
               "How many metres from the road was the discovery near {town}?"),
        "date": ("When will the {org} publish its report?",
                 "On what date will the report from {town} be published?"),
    },
)

COMPANY = Family(
    "company", ("Works", "Industries", "Engineering", "Brothers"),
    Amount(58, 940), Amount(410, 990, 1, "£"),
    ("electric boats", "folding bicycles", "oat biscuits", "hearing aids", "wooden toys",
     "lighthouse lamps", "rain jackets", "garden robots", "church organs", "paper batteries"),
    (
        "{org}, a maker of {topic}, is to build a new factory in {town}.",
        "A factory for {topic} is coming to {town}, {org} said this week.",
        "Demand for {topic} has led {org} to open a second factory in {town}.",
        "{town} has been chosen by {org} as the site of its next factory for {topic}.",
    ),
    (
        (
            "Chief executive {person} said the factory would create {n1} jobs.",
            "The factory will create {n1} jobs, according to chief executive {person}.",
            '"This is home now," said chief executive {person}, promising {n1} jobs.',
        ),
        (
            "Union officer {other} asked for a pay rise of {n2} a year.",
            "A pay rise of {n2} a year should come next, said union officer {other}.",
            "Talks go on with union officer {other}, who wants a pay rise of {n2} a year.",
        ),
        (
            "Production is expected to begin on {date}.",
            "The company hopes to begin production on {date}.",
            "After a year of building, production begins on {date}.",
        ),
    ),
    {
        "person": ("Who is the chief executive of {org}?",
                   "Which chief executive promised jobs in {town}?"),
        "other": ("Which union officer is in talks with {org}?",
                  "Which union officer spoke about pay in {town}?"),
        "town": ("Where will {org} have its new factory?",
                 "In which town did chief executive {person} promise jobs?"),
        "org": ("Which company will have a factory in {town}?",
                "Of which company is {person} chief executive?"),
        "n1": ("How many jobs will {org} create?", "How many jobs will the {town} factory create?"),
        "n2": ("What yearly pay rise does {other} want?",
               "What yearly pay rise was {org} asked for?"),
        "date": ("When does production begin in {town}?",
                 "On what date will the new factory of {org} begin production?"),
    },
)

WEATHER = Family(
    "weather", ("Mountain Rescue", "Lifeboat Crew", "Relief Fund", "Ambulance Corps"),
    Amount(36, 310), Amount(1_100, 9_900, 100),
    ("a summer hailstorm", "a tidal surge", "a freak snowfall", "a violent gale",
     "a lightning storm", "a dust storm", "a sudden thaw", "a week of heavy rain",
     "a severe frost", "a small tornado"),
    (
        "{town} is counting the cost of {topic} that closed the main road.",
        "Every school in {town} was closed this week after {topic}.",
        "People in {town} are counting the cost of {topic}, the worst in years.",
        "After {topic} this week, every road in {town} was closed.",
    ),
    (
        (
            "Volunteers from the {org} led {n1} people to safety.",
            "The {org} was called and brought {n1} people to safety.",
            "Some {n1} people were taken to safety by the {org}.",
        ),
        (
            "Mayor {person} said {n2} homes had lost power.",
            "At one point {n2} homes had lost power, according to Mayor {person}.",
            '"We will mend it," said Mayor {person}, after {n2} homes had lost power.',
        ),
        (
            "Chief engineer {other} expects repairs to be finished by {date}.",
            "Repairs should be finished by {date}, said chief engineer {other}.",
            "It will be {date} before repairs are finished, said chief engineer {other}.",
        ),
    ),
    {
        "person": ("Who is the mayor of {town}?",),
        "other": ("Which chief engineer is in charge of repairs in {town}?",),
        "town": ("Of which town is {person} the mayor?",
                 "In which town did the {org} take people to safety?",
                 "In which town is {other} the chief engineer?"),
        "org": ("Who took people to safety in {town}?",),
        "n1": ("How many people were taken to safety in {town}?",
               "How many people did the {org} bring to safety?"),
        "n2": ("How many homes in {town} lost power?",
               "How many homes did Mayor {person} say had lost power?"),
        "date": ("By what date should repairs in {town} be finished?",
                 "When does chief engineer {other} expect repairs to be finished?"),
    },
)

ARTS = Family(
    "arts", ("Prize", "Medal", "Award", "Bursary"),
    Amount(120, 980), Amount(2_000, 39_000, 1_000, "£"),
    ("a book of sea poems", "a quilt of uniforms", "a film shot in one room", "a choral work",
     "a portrait of a baker", "a play about beekeepers", "a ballet set in a garage",
     "a radio ghost story", "a bronze of a dog", "a comic strip about moths"),
    (
        "{person}, from {town}, has won this year's {org} for {topic}.",
        "The {org} for new work has gone to {person}, of {town}, for {topic}.",
        "{topic_cap} has won the {org} for {person}, who lives and works in {town}.",
        "Judges of the {org} have chosen {topic} by {person}, a teacher from {town}.",
    ),
    (
        (
            "The chair of the judges, {other}, said there had been {n1} entries.",
            "There were {n1} entries, according to the chair of the judges, {other}.",
            '"It was hard," said {other}, chair of the judges, after {n1} entries.',
        ),
        (
            "The winner is given {n2} and a silver bowl.",
            "The winner is given {n2} and a year of free travel.",
            "The winner said that the {n2} will pay for a new workshop.",
        ),
        (
            "A public celebration is planned for {date}.",
            "The winner will speak at a public celebration on {date}.",
            "There will be music at the public celebration on {date}.",
        ),
    ),
    {
        "person": ("Who won the {org}?", "Which artist from {town} won an honour?"),
        "other": ("Who was chair of the judges of the {org}?",
                  "Who was chair of the judges that chose {person}?"),
        "town": ("In which town does {person} live?", "Where does the winner of the {org} live?"),
        "org": ("Which honour did {person} win?", "For which honour was {other} chair of judges?"),
        "n1": ("How many entries were there for the {org}?",
               "How many entries did {other} and the other judges have?"),
        "n2": ("How much money did {person} win?", "How much is the {org} worth?"),
        "date": ("When is the celebration for {person}?",
                 "On what date is the public celebration of the {org}?"),
    },
)

FAMILIES = (COUNCIL, SPORT, OPENING, COURT, SCIENCE, COMPANY, WEATHER, ARTS)
