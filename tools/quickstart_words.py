"""Word lists behind the quickstart's questions. Each word has one answer, and stands in one entry of its list only."""

from __future__ import annotations


def pairs(text: str) -> dict[str, str]:
    """ "a:b c:d" as {a: b, c: d}; refuses a word that is listed twice."""
    entries = text.split()
    table = {left: right for left, _, right in (entry.partition(":") for entry in entries)}
    if len(table) != len(entries):
        raise ValueError(f"{len(entries) - len(table)} words are listed twice in the table of {entries[0]!r}")
    return table


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


OPPOSITES = pairs(
    """
    hot:cold big:small up:down left:right fast:slow happy:sad light:dark new:old open:closed rich:poor tall:short
    wet:dry hard:soft early:late full:empty high:low strong:weak thick:thin good:bad day:night black:white
    true:false first:last inside:outside loud:quiet sweet:sour deep:shallow wide:narrow clean:dirty love:hate
    win:lose push:pull buy:sell ask:answer give:take remember:forget accept:reject above:below more:less north:south
    east:west front:back top:bottom begin:end summer:winter young:elderly brave:cowardly noisy:silent always:never
    before:after near:far friend:enemy heaven:hell husband:wife king:queen brother:sister uncle:aunt boy:girl
    male:female alive:dead asleep:awake safe:dangerous cheap:expensive easy:difficult simple:complex ancient:modern
    public:private visible:invisible possible:impossible legal:illegal polite:rude healthy:sick sharp:blunt
    smooth:rough tight:loose straight:crooked arrive:depart increase:decrease import:export include:exclude
    attack:defend build:destroy laugh:cry sink:float rise:fall success:failure victory:defeat war:peace truth:lie
    entrance:exit maximum:minimum positive:negative optimist:pessimist major:minor guilty:innocent generous:stingy
    humble:arrogant temporary:permanent natural:artificial
    """
)

PLURALS = pairs(
    """
    cat:cats dog:dogs box:boxes city:cities child:children mouse:mice tooth:teeth foot:feet baby:babies leaf:leaves
    knife:knives man:men woman:women bus:buses church:churches wolf:wolves story:stories goose:geese potato:potatoes
    dish:dishes book:books tree:trees party:parties class:classes wife:wives key:keys house:houses hero:heroes
    fox:foxes lady:ladies apple:apples berry:berries bird:birds boat:boats bottle:bottles boy:boys branch:branches
    bridge:bridges brush:brushes butterfly:butterflies cake:cakes car:cars chair:chairs cherry:cherries clock:clocks
    cloud:clouds country:countries cow:cows cup:cups daisy:daisies day:days desk:desks doctor:doctors door:doors
    dress:dresses duck:ducks eagle:eagles egg:eggs elephant:elephants eye:eyes factory:factories family:families
    farmer:farmers flower:flowers fly:flies fork:forks friend:friends frog:frogs garden:gardens giraffe:giraffes
    girl:girls glass:glasses half:halves hand:hands hat:hats horse:horses island:islands kitchen:kitchens
    ladder:ladders lake:lakes lamp:lamps library:libraries life:lives loaf:loaves lunch:lunches match:matches
    monkey:monkeys mountain:mountains orange:oranges peach:peaches pencil:pencils penny:pennies photo:photos
    piano:pianos pony:ponies puppy:puppies rabbit:rabbits river:rivers road:roads school:schools shelf:shelves
    ship:ships shoe:shoes spoon:spoons spy:spies star:stars strawberry:strawberries table:tables teacher:teachers
    thief:thieves tiger:tigers tomato:tomatoes toy:toys train:trains tray:trays truck:trucks turtle:turtles
    village:villages wall:walls watch:watches window:windows wish:wishes witch:witches army:armies ox:oxen
    cherub:cherubs echo:echoes calf:calves scarf:scarves bench:benches diary:diaries valley:valleys donkey:donkeys
    cookie:cookies pocket:pockets ticket:tickets candle:candles carrot:carrots pillow:pillows blanket:blankets
    basket:baskets wing:wings nurse:nurses baker:bakers bush:bushes sandwich:sandwiches mosquito:mosquitoes
    jelly:jellies fairy:fairies
    """
)

PAST_TENSES = pairs(
    """
    go:went see:saw eat:ate run:ran write:wrote take:took come:came give:gave make:made know:knew think:thought
    buy:bought bring:brought sing:sang swim:swam begin:began drive:drove fly:flew speak:spoke break:broke
    walk:walked play:played jump:jumped stop:stopped find:found tell:told sleep:slept win:won build:built send:sent
    spend:spent lose:lost keep:kept leave:left feel:felt meet:met pay:paid say:said sell:sold stand:stood
    teach:taught catch:caught fight:fought hear:heard hold:held choose:chose drink:drank fall:fell forget:forgot
    freeze:froze grow:grew hide:hid ride:rode rise:rose shake:shook steal:stole throw:threw wake:woke wear:wore
    draw:drew blow:blew bite:bit shine:shone lead:led feed:fed sit:sat dig:dug hang:hung swing:swung sink:sank
    ring:rang bend:bent lend:lent sweep:swept weep:wept kneel:knelt become:became understand:understood
    laugh:laughed help:helped open:opened close:closed call:called cook:cooked clean:cleaned dance:danced
    carry:carried cry:cried study:studied try:tried hurry:hurried marry:married plan:planned drop:dropped hug:hugged
    shop:shopped clap:clapped rub:rubbed talk:talked watch:watched wash:washed push:pushed pull:pulled
    listen:listened look:looked love:loved like:liked live:lived move:moved smile:smiled start:started wait:waited
    want:wanted work:worked visit:visited enjoy:enjoyed paint:painted ask:asked answer:answered arrive:arrived
    climb:climbed count:counted finish:finished follow:followed happen:happened hope:hoped invite:invited
    join:joined kick:kicked learn:learned paste:pasted rain:rained use:used bake:baked borrow:borrowed brush:brushed
    change:changed chase:chased cheer:cheered cross:crossed deliver:delivered explain:explained gather:gathered
    knock:knocked notice:noticed order:ordered plant:planted promise:promised repeat:repeated travel:traveled
    """
)

# unit, smaller unit, how many of the smaller make one of the larger
CONVERSIONS = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("decades", "years", 10),
    ("centuries", "years", 100),
    ("meters", "centimeters", 100),
    ("centimeters", "millimeters", 10),
    ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000),
    ("tons", "kilograms", 1000),
    ("liters", "milliliters", 1000),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("pounds", "ounces", 16),
    ("gallons", "quarts", 4),
    ("dollars", "cents", 100),
    ("dollars", "quarters", 4),
    ("dozen eggs", "eggs", 12),
)

MONTHS = words("January February March April May June July August September October November December")
NAMES = words("Anna Ben Carl Dora Emma Finn Grace Hugo Ivy Jack Lucy Max Nina Oscar Rosa Tom")
THINGS = words("apples books coins pens cards shells eggs marbles stamps cookies stickers pears")
