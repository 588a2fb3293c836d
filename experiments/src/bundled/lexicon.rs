//! The words of the bundled language: base forms, and the one rule that inflects them.
//!
//! Nouns and adjectives begin with a consonant, so that the article is always "a". Order matters: a word's place in
//! its list is its frequency rank before a topic or a verb turns the list (see [`super::grammar`]).

use std::sync::LazyLock;

/// Topics of a document, announced in its first sentence.
pub(super) const TOPICS: [&str; 12] = [
    "harbor", "forest", "market", "winter", "mountain", "river", "castle", "garden", "desert", "village", "school",
    "bridge",
];

/// Moods of a document, announced in its first sentence and named again in its last.
pub(super) const MOODS: [&str; 4] = ["merry", "sad", "short", "strange"];

/// Names whose pronoun is "she".
pub(super) const NAMES_SHE: [&str; 24] = [
    "Mara", "Lena", "Sofia", "Greta", "Helen", "Nora", "Petra", "Clara", "Julia", "Vera", "Dina", "Tilda", "Rosa",
    "Martha", "Lucy", "Frieda", "Carmen", "Bella", "Daphne", "Karin", "Miriam", "Selma", "Wanda", "Paula",
];

/// Names whose pronoun is "he".
pub(super) const NAMES_HE: [&str; 24] = [
    "Tobin", "Marcus", "Felix", "Hugo", "Peter", "Victor", "Samuel", "Conrad", "Jasper", "Bruno", "Leon", "Walter",
    "Dario", "Simon", "Gregor", "Hector", "Rupert", "Silas", "Theo", "Karl", "Martin", "Noah", "Pavel", "Ralph",
];

/// Places where the two people of a document live.
pub(super) const PLACES: [&str; 40] = [
    "Dunford",
    "Halewick",
    "Marlow",
    "Stonebury",
    "Kelby",
    "Westmere",
    "Thornhill",
    "Redcliff",
    "Norwell",
    "Ashby",
    "Brackley",
    "Corfield",
    "Drayton",
    "Fernham",
    "Glenrock",
    "Hartley",
    "Kingsmoor",
    "Langdale",
    "Milton",
    "Netherby",
    "Penrose",
    "Quarley",
    "Ravenstone",
    "Sandgate",
    "Tarrant",
    "Upwood",
    "Velden",
    "Winslow",
    "Yarrow",
    "Blackwater",
    "Clifton",
    "Denholm",
    "Foxton",
    "Greywell",
    "Highmoor",
    "Lakeside",
    "Moorgate",
    "Northam",
    "Oakridge",
    "Southwick",
];

/// What a person does for a living.
pub(super) const JOBS: [&str; 32] = [
    "baker",
    "sailor",
    "teacher",
    "farmer",
    "doctor",
    "painter",
    "weaver",
    "hunter",
    "miller",
    "singer",
    "guard",
    "carpenter",
    "fisher",
    "potter",
    "merchant",
    "scholar",
    "smith",
    "tailor",
    "gardener",
    "printer",
    "judge",
    "dancer",
    "builder",
    "cook",
    "pilot",
    "ranger",
    "shepherd",
    "brewer",
    "mason",
    "poet",
    "clerk",
    "driver",
];

/// Relations, as said of a woman and of a man.
pub(super) const RELATIONS: [(&str, &str); 6] = [
    ("sister", "brother"),
    ("daughter", "son"),
    ("aunt", "uncle"),
    ("cousin", "cousin"),
    ("neighbor", "neighbor"),
    ("friend", "friend"),
];

/// How the second person stands to a kind of creature.
pub(super) const FEELINGS: [&str; 4] = ["fear", "love", "draw", "feed"];

/// Creatures, the subjects of most clauses.
pub(super) const CREATURES: [&str; 96] = [
    "dog", "cat", "horse", "bird", "fox", "rabbit", "hedgehog", "bear", "goat", "cow", "pig", "lamb", "rat", "lion",
    "tiger", "monkey", "snake", "frog", "turtle", "whale", "dolphin", "shark", "crab", "spider", "beetle", "bee",
    "wasp", "moth", "duck", "hen", "rooster", "swan", "crow", "raven", "sparrow", "robin", "hawk", "falcon", "parrot",
    "pigeon", "donkey", "camel", "zebra", "giraffe", "panther", "leopard", "badger", "beaver", "squirrel", "hamster",
    "ferret", "weasel", "lizard", "gecko", "toad", "salmon", "trout", "herring", "lobster", "snail", "worm", "cricket",
    "pony", "puppy", "kitten", "colt", "bull", "ram", "boar", "hare", "mole", "bat", "seal", "walrus", "penguin",
    "pelican", "gull", "heron", "stork", "crane", "peacock", "turkey", "quail", "finch", "lark", "magpie", "jackal",
    "hyena", "cheetah", "gorilla", "baboon", "llama", "mule", "hound", "cub", "dragon",
];

/// Things, the objects of most clauses.
pub(super) const THINGS: [&str; 96] = [
    "table", "chair", "door", "window", "rope", "boat", "wagon", "basket", "bottle", "candle", "carpet", "cup",
    "plate", "spoon", "kettle", "pot", "bowl", "blanket", "pillow", "mirror", "clock", "bell", "drum", "flute",
    "violin", "trumpet", "book", "letter", "map", "pencil", "ribbon", "button", "needle", "hammer", "nail", "saw",
    "ladder", "shovel", "bucket", "barrel", "sack", "wheel", "saddle", "bridle", "fence", "gate", "wall", "roof",
    "chimney", "stove", "bench", "vase", "lamp", "torch", "sword", "shield", "helmet", "banner", "crown", "ring",
    "necklace", "coat", "hat", "glove", "shoe", "boot", "belt", "scarf", "shirt", "jacket", "curtain", "towel",
    "brush", "comb", "pan", "cake", "pie", "cookie", "pear", "plum", "peach", "cherry", "melon", "carrot", "turnip",
    "pumpkin", "radish", "mushroom", "berry", "flower", "tree", "bush", "stone", "shell", "feather", "puddle",
];

/// Things worth keeping: what the first person keeps, asked about in the middle and taken home at the end.
pub(super) const TREASURES: [&str; 24] = [
    "lantern",
    "coin",
    "jewel",
    "marble",
    "whistle",
    "locket",
    "compass",
    "medal",
    "statue",
    "doll",
    "kite",
    "puzzle",
    "pearl",
    "ruby",
    "sapphire",
    "diamond",
    "scroll",
    "goblet",
    "dagger",
    "bracelet",
    "telescope",
    "harmonica",
    "fossil",
    "token",
];

/// Where the treasures are kept.
pub(super) const CONTAINERS: [&str; 10] =
    ["box", "chest", "drawer", "cupboard", "trunk", "jar", "bag", "cabinet", "pouch", "suitcase"];

/// Colors of the treasures.
pub(super) const COLORS: [&str; 12] =
    ["red", "blue", "green", "yellow", "white", "black", "brown", "purple", "silver", "golden", "pink", "gray"];

/// Numbers, from two on.
pub(super) const NUMBERS: [&str; 8] = ["two", "three", "four", "five", "six", "seven", "eight", "nine"];

/// Adjectives of people, creatures and things.
pub(super) const ADJECTIVES: [&str; 64] = [
    "big", "small", "young", "kind", "tall", "brave", "clever", "quiet", "loud", "happy", "lazy", "proud", "gentle",
    "hungry", "tired", "fast", "slow", "strong", "weak", "heavy", "light", "warm", "cold", "dry", "wet", "clean",
    "dirty", "bright", "dark", "soft", "hard", "rough", "smooth", "sharp", "round", "narrow", "wide", "deep", "plain",
    "fancy", "rich", "poor", "rare", "common", "famous", "secret", "shy", "bold", "calm", "wild", "tame", "careful",
    "patient", "loyal", "polite", "rude", "serious", "funny", "silent", "sleepy", "thirsty", "lonely", "lucky",
    "modest",
];

/// Verbs with an object.
pub(super) const TRANSITIVE: [&str; 72] = [
    "see", "find", "carry", "push", "pull", "break", "watch", "hide", "bring", "hold", "want", "need", "touch", "lift",
    "drop", "throw", "catch", "kick", "chase", "follow", "guard", "steal", "sell", "buy", "borrow", "lose", "clean",
    "wash", "paint", "build", "repair", "burn", "cover", "fill", "empty", "open", "close", "move", "turn", "shake",
    "smell", "taste", "hear", "count", "measure", "cut", "tie", "bury", "dig", "drag", "admire", "hate", "prefer",
    "remember", "forget", "study", "examine", "choose", "collect", "deliver", "destroy", "discover", "enjoy", "grab",
    "ignore", "inspect", "notice", "order", "polish", "protect", "receive", "share",
];

/// Verbs without an object.
pub(super) const INTRANSITIVE: [&str; 36] = [
    "sleep", "run", "walk", "jump", "sing", "dance", "laugh", "cry", "wait", "rest", "swim", "climb", "fall", "stand",
    "sit", "work", "play", "shout", "whisper", "smile", "listen", "wander", "travel", "return", "arrive", "vanish",
    "appear", "stumble", "tremble", "hesitate", "yawn", "sneeze", "snore", "bow", "kneel", "hurry",
];

/// Verbs with a clause: "says that ...". Only people do this.
pub(super) const SAYING: [&str; 8] = ["say", "think", "know", "hope", "dream", "believe", "swear", "claim"];

/// Adverbs after a verb without an object.
pub(super) const ADVERBS: [&str; 32] = [
    "slowly",
    "quickly",
    "often",
    "again",
    "today",
    "alone",
    "together",
    "quietly",
    "loudly",
    "gladly",
    "sadly",
    "badly",
    "well",
    "here",
    "there",
    "early",
    "late",
    "outside",
    "inside",
    "everywhere",
    "sometimes",
    "always",
    "softly",
    "bravely",
    "gently",
    "calmly",
    "wildly",
    "proudly",
    "rarely",
    "barely",
    "twice",
    "daily",
];

/// Prepositions after a verb; a noun phrase follows.
pub(super) const PREPOSITIONS: [&str; 8] = ["beside", "under", "behind", "with", "without", "before", "after", "above"];

/// Plurals of [`CREATURES`], in the same order.
pub(super) static PLURAL_CREATURES: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&CREATURES));
/// Plurals of [`THINGS`], in the same order.
pub(super) static PLURAL_THINGS: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&THINGS));
/// Plurals of [`TREASURES`], in the same order.
pub(super) static PLURAL_TREASURES: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&TREASURES));
/// Third persons of [`TRANSITIVE`], in the same order.
pub(super) static TRANSITIVE_S: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&TRANSITIVE));
/// Third persons of [`INTRANSITIVE`], in the same order.
pub(super) static INTRANSITIVE_S: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&INTRANSITIVE));
/// Third persons of [`SAYING`], in the same order.
pub(super) static SAYING_S: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&SAYING));
/// Third persons of [`FEELINGS`], in the same order.
pub(super) static FEELINGS_S: LazyLock<Vec<&'static str>> = LazyLock::new(|| s_forms(&FEELINGS));

/// Made once and kept for the life of the program, so that all words of the language are `&'static str`.
fn s_forms(bases: &[&str]) -> Vec<&'static str> {
    bases.iter().map(|base| &*s_form(base).leak()).collect()
}

/// The s-form of a regular word: plural of a noun, third person singular of a verb.
fn s_form(base: &str) -> String {
    let consonant_y = base.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']));
    if let Some(stem) = consonant_y {
        format!("{stem}ies")
    } else if base.ends_with("ch") || base.ends_with("sh") || base.ends_with(['s', 'x', 'z']) {
        format!("{base}es")
    } else {
        format!("{base}s")
    }
}
