"""Make the list of things, `benchmarks/things.json`: everyday things that at least four of the sets to train on draw.

    python -m videollm_mod.benchmarks.things_names --sets FOLDER

`CHOSEN` says which icons show a thing, by their names in the set `noto`, and what an ordinary person calls it. Names
are singular, so that "A NAME appears." is a sentence. Left out are things that several names fit (a ram is a sheep, a
brick may be a wall), things that the sets draw differently, letters, symbols, flags, faces and people; and cups and
bottles, since the bundled clip of a real bottle is the world's example of a view with nothing that it knows.
"""

import argparse
import json
import re
from pathlib import Path

from ..data.things import TRAINED
from .things_sets import PACKAGES, IconSet

LIST = Path(__file__).with_name("things.json")
FEWEST = 4  # sets to train on that draw a thing
UNKNOWN = ("Symbols", "Flags", "Smileys & Emotion")  # categories of icons of nothing that is a thing
ALIKE = {  # words in the names of icons that resemble a thing, or a coloured shape, which the other levels name
    "arrow", "atm", "baggage", "bicycles", "bright", "brightness", "camera", "cat", "cinema", "circle", "clouds",
    "cross", "currency", "dashing", "dim", "dimmed", "dizzy", "goblin", "heart", "litter", "love", "luggage", "mobile",
    "monkey", "ogre", "plus", "poo", "square", "sweat", "vibration", "water",
}  # fmt: skip
CHOSEN = """
# animals
dog, dog-face, poodle = dog; cat, cat-face = cat; mouse, mouse-face = mouse; hamster; rabbit, rabbit-face = rabbit;
fox; bear; panda; polar-bear = polar bear; koala; tiger, tiger-face = tiger; lion; leopard; cow, cow-face = cow;
pig, pig-face = pig; frog; monkey, monkey-face = monkey; gorilla; chicken; baby-chick, front-facing-baby-chick,
hatching-chick = chick; turkey; duck; swan; owl; eagle; parrot; peacock; flamingo; penguin; bird; dove; bat; wolf;
horse, horse-face = horse; zebra; donkey; unicorn; deer; goat; ewe = sheep; camel, two-hump-camel = camel; llama;
giraffe; elephant; rhinoceros; hippopotamus; kangaroo; raccoon; skunk; hedgehog; beaver; otter; sloth; crocodile;
turtle; lizard; snake; dragon, dragon-face = dragon; sauropod, t-rex = dinosaur; whale, spouting-whale = whale;
dolphin; seal; shark; fish, tropical-fish = fish; blowfish = pufferfish; octopus; squid; jellyfish; crab; lobster;
shrimp; oyster; snail; butterfly; bug = caterpillar; ant; honeybee = bee; lady-beetle = ladybug; beetle; mosquito;
spider; spider-web = spider web; scorpion; worm; spiral-shell = seashell; feather; bone; tooth; brain
# plants
bouquet; rose; tulip; sunflower; hibiscus; cherry-blossom = cherry blossom; cactus; palm-tree = palm tree;
deciduous-tree = tree; evergreen-tree = fir tree; christmas-tree = Christmas tree; four-leaf-clover = four-leaf
clover; maple-leaf = maple leaf; mushroom, brown-mushroom = mushroom; potted-plant = potted plant; seedling
# fruit
red-apple, green-apple = apple; pear; tangerine = orange; lemon; banana; watermelon; melon; grapes = bunch of
grapes; strawberry; blueberries = blueberry; cherries = pair of cherries; peach; mango; pineapple; coconut;
kiwi-fruit = kiwi; tomato; avocado; eggplant; potato; carrot; ear-of-corn = ear of corn; hot-pepper = chili pepper;
bell-pepper = bell pepper; cucumber; leafy-green = head of lettuce; broccoli; garlic = garlic bulb; onion; peanuts
= peanut; chestnut; pea-pod = pea pod
# dishes
bread = loaf of bread; croissant; baguette-bread = baguette; pretzel; bagel; pancakes = stack of pancakes; waffle;
cheese-wedge = piece of cheese; poultry-leg = chicken leg; cut-of-meat = steak; bacon = slice of bacon; hamburger;
french-fries = portion of fries; pizza = slice of pizza; hot-dog = hot dog; sandwich; taco; burrito; egg; cooking =
fried egg; pot-of-food = pot of food; green-salad = bowl of salad; popcorn = box of popcorn; canned-food = can;
rice-ball = rice ball; cooked-rice = bowl of rice; steaming-bowl = bowl of noodles; spaghetti = plate of spaghetti;
sushi = piece of sushi; dumpling; soft-ice-cream = ice cream cone; ice-cream = bowl of ice cream; doughnut; cookie;
birthday-cake = birthday cake; shortcake = piece of cake; cupcake; pie; chocolate-bar = chocolate bar; candy;
lollipop; custard = pudding; honey-pot = honey pot; baby-bottle = baby bottle; glass-of-milk = glass of milk;
teapot; wine-glass = glass of wine; cocktail-glass = cocktail; tropical-drink = tropical drink; beer-mug = mug of
beer; beverage-box = juice box; ice = ice cube; chopsticks = pair of chopsticks; spoon; kitchen-knife = kitchen
knife; fork-and-knife = fork and knife; salt = salt shaker; butter = piece of butter
# vehicles
locomotive = steam locomotive; high-speed-train, bullet-train, light-rail = train; tram;
bus, oncoming-bus = bus; ambulance; fire-engine = fire truck; police-car, oncoming-police-car = police car; taxi,
oncoming-taxi = taxi; automobile, oncoming-automobile = car; pickup-truck = pickup truck; delivery-truck,
articulated-lorry = truck; tractor; racing-car = race car; motorcycle; motor-scooter = motor scooter; kick-scooter
= kick scooter; bicycle; skateboard; roller-skate = roller skate; passenger-ship, ship = ship; sailboat; speedboat;
canoe; airplane, small-airplane = airplane; helicopter; rocket; flying-saucer = flying saucer; satellite;
aerial-tramway, mountain-cableway = cable car; parachute; manual-wheelchair = wheelchair;
anchor; fuel-pump = gas pump; vertical-traffic-light, horizontal-traffic-light = traffic light; police-car-light =
police light; ring-buoy = life buoy
# buildings
house, house-with-garden = house; church; mosque; castle; factory; tent; ferris-wheel = Ferris wheel;
roller-coaster = roller coaster; carousel-horse = carousel horse; circus-tent = circus tent; fountain;
tokyo-tower = tower; snow-capped-mountain, mountain, mount-fuji = mountain;
volcano; desert-island = desert island; barber-pole = barber pole; rock; wood = log
# sky
rainbow; sun, sun-with-face = sun; crescent-moon = crescent moon; ringed-planet = planet; shooting-star = shooting
star; cloud; cloud-with-rain = rain cloud; tornado; snowflake; snowman, snowman-without-snow = snowman; fire;
droplet = drop of water; umbrella, closed-umbrella, umbrella-with-rain-drops = umbrella; umbrella-on-ground = beach
umbrella; thermometer; globe-showing-americas, globe-showing-asia-australia, globe-showing-europe-africa = globe;
compass
# clothes
watch; luggage = suitcase; briefcase; backpack; handbag; purse; shopping-bags = pair of shopping bags;
shopping-cart = shopping cart; crown; top-hat = top hat; billed-cap = cap; graduation-cap = graduation cap;
womans-hat = sun hat; rescue-workers-helmet = helmet; glasses = pair of glasses; sunglasses = pair of sunglasses;
goggles = pair of goggles; necktie; t-shirt = T-shirt; dress; jeans = pair of jeans; shorts = pair of shorts;
scarf; gloves = pair of gloves; socks = pair of socks; bikini; kimono; running-shoe = sneaker; mans-shoe = shoe;
high-heeled-shoe = high-heeled shoe; womans-sandal = sandal; womans-boot = boot; thong-sandal = flip-flop;
lipstick; ring; gem-stone = gem
# sounds
bell; megaphone, loudspeaker = megaphone; saxophone; trumpet; guitar; violin; drum; accordion; musical-keyboard =
piano keyboard; banjo; flute; maracas = pair of maracas; postal-horn = horn; microphone, studio-microphone =
microphone; headphone = pair of headphones; radio
# devices
mobile-phone = mobile phone; telephone; telephone-receiver = telephone receiver; battery; electric-plug = plug;
laptop; desktop-computer = computer; printer; keyboard; computer-mouse = computer mouse; optical-disk, dvd = disc;
floppy-disk = floppy disk; abacus; movie-camera = movie camera; clapper-board = clapperboard; television; camera,
camera-with-flash = camera; video-camera = video camera; alarm-clock = alarm clock; stopwatch; mantelpiece-clock =
mantel clock; hourglass-done, hourglass-not-done = hourglass; magnifying-glass-tilted-left,
magnifying-glass-tilted-right = magnifying glass; light-bulb = light bulb; flashlight; joystick; video-game = game
controller; slot-machine = slot machine; satellite-antenna = satellite dish; microscope; telescope
# household
candle; red-paper-lantern = paper lantern; closed-book, blue-book, green-book, orange-book = book; books = stack of
books; open-book = open book; newspaper, rolled-up-newspaper = newspaper; scroll; money-bag = money bag; coin;
dollar-banknote, euro-banknote, yen-banknote, pound-banknote = stack of banknotes; credit-card = credit card;
envelope; package; closed-mailbox-with-raised-flag, closed-mailbox-with-lowered-flag,
open-mailbox-with-raised-flag, open-mailbox-with-lowered-flag = mailbox; pencil; pen; paintbrush; crayon;
clipboard; pushpin, round-pushpin = pushpin; paperclip; straight-ruler = ruler; file-cabinet = filing cabinet;
wastebasket; file-folder, open-file-folder = folder; calendar, tear-off-calendar = calendar; door; mirror; window;
bed; couch-and-lamp = couch; chair; toilet; plunger; shower; bathtub; razor; safety-pin = safety pin; broom;
basket; roll-of-paper = roll of toilet paper; bucket; soap = bar of soap; toothbrush; sponge; fire-extinguisher =
fire extinguisher; headstone; bellhop-bell = service bell; folding-hand-fan = fan; framed-picture = framed picture;
artist-palette = palette; thread = spool of thread; yarn = ball of yarn; ticket, admission-tickets = ticket
# tools
locked, unlocked, locked-with-key = padlock; key, old-key = key; hammer; axe; pick = pickaxe; dagger; bomb;
boomerang; bow-and-arrow = bow and arrow; shield; carpentry-saw = saw; wrench; screwdriver; nut-and-bolt = nut and
bolt; gear; balance-scale = balance scale; hook; toolbox; magnet; ladder; test-tube = test tube; dna = DNA helix;
syringe; pill; adhesive-bandage = bandage; stethoscope; scissors = pair of scissors; oil-drum = oil drum
# play
teddy-bear = teddy bear; puzzle-piece = puzzle piece; game-die = die; chess-pawn = chess pawn; kite; yo-yo;
balloon; wrapped-gift = gift; party-popper = party popper; jack-o-lantern = jack-o'-lantern; trophy; sports-medal,
military-medal, 1st-place-medal, 2nd-place-medal, 3rd-place-medal = medal; soccer-ball = soccer ball; baseball;
basketball; volleyball; american-football = football; ping-pong = table tennis paddle; badminton =
badminton racket; boxing-glove = boxing glove; ice-skate = ice skate; fishing-pole = fishing rod; skis = pair of
skis; sled; bullseye = target; water-pistol = water pistol; pool-8-ball = billiard ball; crystal-ball = crystal
ball; magic-wand = magic wand; nesting-dolls = nesting doll; mirror-ball = disco ball; playground-slide = slide;
skull; ghost; robot; alien; ice-hockey = hockey stick
"""
OTHERWISE = {  # icons with other names than in the set `noto`
    "fxemoji": """
redapple = red-apple; greenapple = green-apple; bunny = rabbit-face; cat = cat-face; catside = cat; dog = dog-face;
dogside = dog; mouse = mouse-face; mouseside = mouse; tiger = tiger-face; tigerside = tiger; pig = pig-face;
pigside = pig; pandaface = panda; wolfface = wolf; hampster = hamster; dragonhead = dragon-face; dragonside =
dragon; leopardside = leopard; spurtingwhale = spouting-whale; ladybeetle = lady-beetle; frontfacingchick =
front-facing-baby-chick; chilipepper = hot-pepper; earofmaize = ear-of-corn; hocho = kitchen-knife; sliceofpizza =
pizza; steamlocomotive = locomotive; highspeedtrainbulletnose = bullet-train; racecar = racing-car; evergreen =
evergreen-tree; electrictorch = flashlight; leftmagnifyingglass = magnifying-glass-tilted-left;
rightmagnifyingglass = magnifying-glass-tilted-right; studiomic = studio-microphone; toykotower = tokyo-tower;
schoolsatchel = backpack; heels = high-heeled-shoe; mansshirt = t-shirt; mensshoe = mans-shoe; tie = necktie;
darksunglasses = sunglasses; hourglass = hourglass-done; hourglassflowingsand = hourglass-not-done; lock = locked;
openlock = unlocked; lockandkey = locked-with-key; blackscissors = scissors; gem = gem-stone; floppydisk2 =
floppy-disk; moyai = moai; lowerleftfountainpen = fountain-pen; lowerleftpaintbrush = paintbrush; lowerleftcrayon =
crayon; lowerleftpen = pen; lowerleftpencil = pencil; opticaldisc = optical-disk; videocasette = videocassette;
cellphone = mobile-phone; telephonereceiver2 = telephone-receiver; blacktelephone = telephone; printericon =
printer; wiredkeyboard = keyboard; threebuttonmouse = computer-mouse; mountfuji = mount-fuji; snowmountains =
snow-capped-mountain; housebuilding = house; doveofpeace = dove; skiandskiboot = skis; present = wrapped-gift;
policecarsrevolvinglight = police-car-light; beachumbrella = umbrella-on-ground; daggerknife = dagger;
fishingpoleandfish = fishing-pole; directhit = bullseye; billiards = pool-8-ball; sandals = womans-sandal; boot =
womans-boot; pinkwallet = purse; izakayalantern = red-paper-lantern; dromedarycamel = camel; bactriancamel =
two-hump-camel; sheep = ewe; bouquetofflowers = bouquet; aubergine = eggplant; palmtree = palm-tree;
oncomingautomobile = oncoming-automobile; americasglobe = globe-showing-americas; europeafricaglobe =
globe-showing-europe-africa; asiaaustraliaglobe = globe-showing-asia-australia; banknotedollar = dollar-banknote;
closedmailboxraised = closed-mailbox-with-raised-flag; closedmailboxlowered = closed-mailbox-with-lowered-flag;
openmailboxraised = open-mailbox-with-raised-flag; openmailboxlowered = open-mailbox-with-lowered-flag;
handheldvideocamera = video-camera; camerawithflash = camera-with-flash; manltepiececlock = mantelpiece-clock;
tennisball = tennis; europeancastle = castle; sunrays = sun; womansshirt = womans-clothes; womanshat = womans-hat;
classicalbuilding = classical-building; raincloud = cloud-with-rain; personalcomputer = desktop-computer
""",
    "streamline-emojis": """
school-backpack = backpack; direct-hit = bullseye; game-dice = game-die
""",
}
WRONG = {  # icons that show something else than those of their name in other sets
    "fxemoji": ("bird", "window"),
    "streamline-emojis": ("turkey", "headphone", "maple-leaf", "wine-glass"),
    "openmoji": ("scroll",),
}


def entries(text: str) -> dict[str, list[str]]:
    """`a, b = name; c` -> the icons of each name; without a name it is that of the icon."""
    found: dict[str, list[str]] = {}
    for entry in re.sub(r"(?m)^# .*$", ";", text).split(";"):
        icons, _, name = " ".join(entry.split()).partition(" = ")
        if icons:
            found.setdefault(name or icons, []).extend(icons.split(", "))
    return found


def icons_of(icons: list[str], known: IconSet) -> list[str]:
    """The names in a set of those of its icons that show what `icons` show in the set `noto`."""
    numbered = {}
    for name in known.icons["icons"]:
        numbered.setdefault(re.sub(r"-\d$", "", name), []).append(name)
    others = entries(OTHERWISE[known.style]) if known.style in OTHERWISE else {}
    taken = {name for names in others.values() for name in names}
    found = []
    for icon in icons:
        if icon in WRONG.get(known.style, ()):
            continue
        names = others.get(icon) or numbered.get(icon) or [icon]
        if known.style == "fxemoji" and icon not in others:
            names = [icon.replace("-", "")]
        found += [name for name in names if name in known and (icon in others or name not in taken)]
    return list(dict.fromkeys(found))


def listed(sets: dict[str, IconSet]) -> dict[str, dict]:
    """Name -> `{"codepoints", "icons": names in most sets, STYLE: names in that style, if they differ}`."""
    things = {}
    for name, icons in entries(CHOSEN).items():
        drawn = {style: icons_of(icons, known) for style, known in sets.items()}
        if sum(bool(drawn[style]) for style in TRAINED) < FEWEST:
            continue
        differ = {style: names for style, names in drawn.items() if names != icons}
        things[name] = {"codepoints": [sets["noto"].codepoints[icon] for icon in icons], "icons": icons, **differ}
    return dict(sorted(things.items(), key=lambda item: item[0].lower()))


def unknown(noto: IconSet) -> list[str]:
    """Icons of nothing that the list names, nor of anything that resembles it."""
    words = {word for icons in entries(CHOSEN).values() for icon in icons for word in icon.split("-")}
    words = words - {"face", "with"} | ALIKE
    icons = [icon for kind in UNKNOWN for icon in noto.categories[kind] if "skin-tone" not in icon]
    return sorted(icon for icon in icons if not words & {*icon.split("-")})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sets", type=Path, required=True, help="folder of the npm packages; missing ones are fetched"
    )
    parser.add_argument("--output", type=Path, default=LIST, help=f"(default: {LIST.name} of this folder)")
    args = parser.parse_args(argv)
    sets = {style: IconSet.fetch(style, args.sets) for style in PACKAGES}
    things = listed(sets)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(thing)}" for name, thing in things.items())
    others = unknown(sets["noto"])
    args.output.write_text(f'{{"things": {{\n{lines}\n}},\n"unknown": {json.dumps(others)}}}\n', encoding="utf-8")
    print(f"{len(things)} things, {len(others)} icons of nothing that they name")


if __name__ == "__main__":
    main()
