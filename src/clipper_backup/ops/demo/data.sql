-- The rows of the Clipper database. Every value is a function of its row's number, so that two runs make the same rows
-- whatever the planner does; `:name` stands for a row count that grows with the scale.

-- section: vocabulary
SET TimeZone = 'UTC';
SET work_mem = '128MB';
SET maintenance_work_mem = '256MB';

-- A number from 1 to $3 that looks random, and always is the same for the same row and purpose.
CREATE FUNCTION pg_temp.pick(row_number bigint, purpose integer, choices integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + ((hashint8extended(row_number, purpose) & 2147483647) % choices)::integer;
-- The same, with small numbers far more often than large ones, as fame goes.
CREATE FUNCTION pg_temp.famous(row_number bigint, purpose integer, choices integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + (choices * power((hashint8extended(row_number, purpose) & 2147483647) / 2147483648.0::float8, 3))::integer % choices;
-- Bytes that do not compress, as those of pictures do not.
CREATE FUNCTION pg_temp.noise(row_number bigint, kibibytes numeric) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT string_agg(sha512(int8send(row_number * 65536 + n)), '' ORDER BY n) FROM generate_series(1, ceil(kibibytes * 16)::integer) AS n);

CREATE TEMP TABLE words AS
SELECT kind, word, row_number() OVER (PARTITION BY kind ORDER BY word) AS id
FROM (VALUES
    ('adjective', 'able ancient angry awkward bitter blue bold brave brief bright broken busy calm careful cheap clean clever cold common cool
        curious damp dark deep distant dry dull eager early easy electric empty endless exact famous fast final foggy foreign fresh friendly
        frozen funny gentle giant golden grand great green grey happy harsh heavy hidden hollow honest huge humble icy idle late lazy lazy-eyed
        light little local lonely long loose loud lucky mad merry mighty modern muddy narrow neat new nice noisy odd old open orange pale patient
        perfect plain polite poor proud purple quick quiet rare raw ready real red rich ripe rough round royal sad safe salty sandy secret serious
        shallow sharp short shy silent silly silver simple slow small smart smooth soft solid sour steady steep strange strong sudden sunny super
        sweet swift tall tame tender terrible thick thin tiny tired tough true ugly unusual useful usual vast warm weak weary weird wet white wide
        wild wise wonderful wooden wrong yellow young'),
    ('noun', 'accident actor airport alarm album animal answer apartment apple artist audience avenue baby band bank barn baseball basket bear
        beach bicycle bird birthday boat book border bottle boy bread bridge brother building bus cabin cake camera camp candle car castle cat
        ceiling chair champion cheese chef chicken choir church cinema city classroom cliff cloud coach coast coffee comedian computer concert
        corner costume couple cousin cow crowd dance dancer daughter desert dinner doctor dog dolphin door dragon drone drummer duck eagle
        editor elephant engine episode evening experiment farmer father festival film fire fish flight flower football forest fountain fox friend
        frog game garage garden ghost giraffe girl glacier glove goal goat goose guest guitar hamster harbour hat hill horse hospital hotel house
        hurricane interview island jacket jazz jelly joke journey judge juggler jungle keyboard king kitchen kite kitten ladder lake lamp laptop
        lawyer library lighthouse lion lizard magician map market match meadow melody minute mirror monkey moon mother motorbike mountain mouse
        museum mushroom neighbour night nurse ocean octopus office orchestra owl painter pancake panda parade parent park parrot party penguin
        phone pianist picnic pigeon pilot pirate pizza planet player pond pony postcard potato prank puppy puzzle queen rabbit race radio railway
        rain recipe referee restaurant river robot rocket roof runner sailor sandwich scene school scientist seagull shadow shark sheep ship shop
        singer sister skateboard snail snake snowman soldier song soup spider squirrel stadium staircase star station storm stranger street student
        summer sunset surfer swimmer table teacher team teddy telescope theatre thunder tiger tower town tractor trailer train tree trick trumpet
        tunnel turtle umbrella uncle valley van village violin visitor volcano waiter waterfall wave wedding weekend whale wheel window winner
        winter witness wolf woman writer yacht zebra zoo'),
    ('verb', 'admires answers avoids believes blames blocks borrows breaks brings builds buys calls carries catches celebrates changes chases
        cheers chooses cleans climbs collects considers cooks copies counts covers crosses dances-with defends describes destroys discovers draws
        drives drops enjoys escapes examines explains explores fears feeds fights films finds fixes follows forgets forgives freezes frightens
        greets guards guesses hates hears helps hides hits hugs imagines imitates improves interrupts invents invites joins judges jumps-over keeps
        kicks knows launches leads learns leaves likes loses loves measures meets misses moves needs notices offers opens orders outruns paints
        passes photographs pleases pulls pushes questions raises reaches reads records refuses remembers rescues reviews rides saves scares sees
        sells shows sings-to steals stops studies surprises teaches tells thanks throws touches trains trusts understands visits warns wants
        washes watches welcomes wins'),
    ('manner', 'again almost always anyway at-last at-night badly before-lunch before-sunrise by-accident by-mistake carefully cheerfully
        in-slow-motion in-the-rain in-the-snow just-once live loudly never nobody-knows-why on-a-monday on-camera on-purpose on-the-way-home
        once-more politely quickly quietly really slowly somehow sometimes successfully suddenly three-times today together tomorrow too-late
        twice unexpectedly with-both-hands with-style without-a-plan without-looking yesterday')
) AS list (kind, listed), regexp_split_to_table(listed, '\s+') AS word;

CREATE TEMP TABLE noun_phrases AS
SELECT (row_number() OVER (ORDER BY article, adjective.id, noun.id))::integer AS id, concat_ws(' ', article, adjective.word, noun.word) AS words
FROM (VALUES ('the'), ('my'), ('a')) AS articles (article), words AS adjective, words AS noun
WHERE adjective.kind = 'adjective' AND noun.kind = 'noun' AND (hashint8(adjective.id * 1000 + noun.id) & 3) = 0;

CREATE TEMP TABLE verb_phrases AS
SELECT (row_number() OVER (ORDER BY verb.id, manner.id))::integer AS id, replace(concat_ws(' ', verb.word, manner.word), '-', ' ') AS words
FROM words AS verb, words AS manner WHERE verb.kind = 'verb' AND manner.kind = 'manner';
ANALYZE noun_phrases, verb_phrases;
