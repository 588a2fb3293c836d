//! The stochastic grammar of the bundled language: short stories that are easy to begin and need memory to finish.
//!
//! A document is one line. It names its mood and topic, introduces two people (name, adjective, job, place,
//! relation), a treasure (number, color, thing, container) and what the second person fears or loves. Then come
//! sentences of several kinds, then an ending that repeats what was introduced. What a language model has to track:
//! - number agreement between subject and verb, across relative clauses and "near the ..." with a noun of the other
//!   number in between;
//! - pronouns that agree with the last subject;
//! - typed brackets that close in the order in which they opened;
//! - facts of the introduction, asked for in questions and repeated at the end (color, number, place, job, ...);
//! - word frequencies (Zipf-like) whose order depends on the topic, on the subject and on the verb.
//!
//! # Why the probability of a text is known exactly
//!
//! The grammar is written against [`Walker`] and makes every decision by emitting a word: [`Walker::choose`] offers
//! options that begin with distinct words and emits the chosen one; [`Walker::maybe`] may emit none, and then the
//! word that comes next is none of those it offered. So the next word alone decides each choice, two different
//! derivations differ at the first word where they part, and the probability of a text is the product of the choices
//! of its only derivation. [`super::entropy`] draws texts and parses them back with this same code.

use std::sync::LazyLock;

use super::lexicon;

/// Who makes the choices: a sampler or a parser.
pub(super) trait Walker {
    /// Why a walk can stop early.
    type Error;

    /// Emits one of `options`, `(word, weight)` with distinct words, and returns its index. Its probability is its
    /// weight over the sum of all weights.
    fn choose(&mut self, options: &[Weighted]) -> Result<usize, Self::Error>;

    /// With probability `1 - pass` the same as [`Walker::choose`]; else emits nothing. The grammar guarantees that
    /// the word after a pass is none of the options.
    fn maybe(&mut self, options: &[Weighted], pass: f64) -> Result<Option<usize>, Self::Error>;

    /// Emits the only possible word.
    fn say(&mut self, word: &'static str) -> Result<(), Self::Error> {
        self.choose(&[(word, 1.0)]).map(drop)
    }
}

/// A word and its weight.
pub(super) type Weighted = (&'static str, f64);

/// Sentences in the body of a document, at most; the chance to stop begins after [`MIN_SENTENCES`].
const MAX_SENTENCES: usize = 14;
const MIN_SENTENCES: usize = 4;
/// Weight of stopping against a total of about 1 for going on.
const STOP: f64 = 0.16;
/// Clauses inside clauses, and brackets inside brackets, at most.
const MAX_DEPTH: usize = 3;

static PLURAL_CREATURES: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::CREATURES));
static PLURAL_THINGS: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::THINGS));
static PLURAL_TREASURES: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::TREASURES));
static TRANSITIVE_S: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::TRANSITIVE));
static INTRANSITIVE_S: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::INTRANSITIVE));
static SAYING_S: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::SAYING));
static FEELINGS_S: LazyLock<Vec<String>> = LazyLock::new(|| s_forms(&lexicon::FEELINGS));

fn s_forms(bases: &[&str]) -> Vec<String> {
    bases.iter().map(|base| lexicon::s_form(base)).collect()
}

/// Walks one document, from its first word to its last full stop.
pub(super) fn document<W: Walker>(walker: &mut W) -> Result<(), W::Error> {
    let mut story = Story::open(walker)?;
    let mut n_sentences = 0;
    while story.sentence(n_sentences)? {
        n_sentences += 1;
    }
    story.ending()
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    One,
    Many,
}

/// A class of nouns with both forms.
#[derive(Clone, Copy)]
enum NounClass {
    Creature,
    Thing,
}

impl NounClass {
    fn forms(self, number: Number) -> Vec<&'static str> {
        match (self, number) {
            (NounClass::Creature, Number::One) => lexicon::CREATURES.to_vec(),
            (NounClass::Thing, Number::One) => lexicon::THINGS.to_vec(),
            (NounClass::Creature, Number::Many) => strs(&PLURAL_CREATURES),
            (NounClass::Thing, Number::Many) => strs(&PLURAL_THINGS),
        }
    }
}

/// What a verb agrees with and a pronoun refers to.
#[derive(Clone, Copy)]
struct Referent {
    pronoun: &'static str,
    number: Number,
    is_person: bool,
    /// Turns the frequency order of the verbs.
    habit: usize,
}

struct Person {
    name: &'static str,
    is_she: bool,
    job: usize,
    place: usize,
}

impl Person {
    fn referent(&self) -> Referent {
        Referent {
            pronoun: if self.is_she { "she" } else { "he" },
            number: Number::One,
            is_person: true,
            habit: self.job,
        }
    }
}

/// What the introduction fixed for the rest of the document.
struct Facts {
    mood: &'static str,
    topic: usize,
    people: [Person; 2],
    number: &'static str,
    color: &'static str,
    treasures: &'static str,
    container: &'static str,
    feeling: usize,
    creatures: &'static str,
}

struct Story<'a, W> {
    walker: &'a mut W,
    facts: Facts,
    last_subject: Referent,
}

/// Determiners with the numbers that they allow, and their share of noun phrases.
const DETERMINERS: [(&str, &[Number], f64); 8] = [
    ("the", &[Number::One, Number::Many], 0.34),
    ("a", &[Number::One], 0.22),
    ("every", &[Number::One], 0.08),
    ("this", &[Number::One], 0.06),
    ("many", &[Number::Many], 0.10),
    ("some", &[Number::Many], 0.10),
    ("these", &[Number::Many], 0.06),
    ("both", &[Number::Many], 0.04),
];

/// Weights proportional to `1 / (rank + 2)` that sum to `mass`; the word at index `turn` has rank 0.
fn zipf(words: &[&'static str], turn: usize, mass: f64) -> Vec<Weighted> {
    let n = words.len();
    let weight = |rank: usize| 1.0 / (rank as f64 + 2.0);
    let total: f64 = (0..n).map(weight).sum();
    words.iter().enumerate().map(|(index, word)| (*word, mass * weight((index + n - turn % n) % n) / total)).collect()
}

/// The words of a list made by [`s_forms`].
fn strs(words: &'static [String]) -> Vec<&'static str> {
    words.iter().map(String::as_str).collect()
}

/// Introduces a person up to the place: "Mara , a quiet baker , lives in Dunford". Name, job and place differ from
/// those of `other`.
fn introduce<W: Walker>(walker: &mut W, topic: usize, other: Option<&Person>) -> Result<Person, W::Error> {
    let names: Vec<_> = lexicon::NAMES_SHE.into_iter().chain(lexicon::NAMES_HE).collect();
    let mut options: Vec<_> = names.iter().map(|name| (*name, 1.0)).collect();
    options.retain(|(name, _)| other.is_none_or(|other| other.name != *name));
    let name = options[walker.choose(&options)?].0;
    walker.say(",")?;
    walker.say("a")?;
    walker.choose(&zipf(&lexicon::ADJECTIVES, 5 * topic, 1.0))?;

    let without = |list: &'static [&'static str], turn: usize, skip: Option<usize>| {
        let mut options = zipf(list, turn, 1.0);
        options.retain(|(word, _)| skip.is_none_or(|skip| list[skip] != *word));
        options
    };
    let job_options = without(&lexicon::JOBS, 3 * topic, other.map(|other| other.job));
    let job = job_options[walker.choose(&job_options)?].0;
    for word in [",", "lives", "in"] {
        walker.say(word)?;
    }
    let place_options = without(&lexicon::PLACES, 3 * topic, other.map(|other| other.place));
    let place = place_options[walker.choose(&place_options)?].0;

    let index_of = |list: &[&str], word: &str| list.iter().position(|entry| *entry == word).unwrap_or_default();
    Ok(Person {
        name,
        is_she: lexicon::NAMES_SHE.contains(&name),
        job: index_of(&lexicon::JOBS, job),
        place: index_of(&lexicon::PLACES, place),
    })
}

impl<'a, W: Walker> Story<'a, W> {
    /// The introduction: every fact that the rest of the document can come back to.
    fn open(walker: &'a mut W) -> Result<Self, W::Error> {
        for word in ["this", "is", "a"] {
            walker.say(word)?;
        }
        let mood = lexicon::MOODS[walker.choose(&zipf(&lexicon::MOODS, 0, 1.0))?];
        for word in ["story", "of", "the"] {
            walker.say(word)?;
        }
        let topic = walker.choose(&zipf(&lexicon::TOPICS, 0, 1.0))?;
        walker.say(".")?;

        let first = introduce(walker, topic, None)?;
        walker.say(".")?;
        let second = introduce(walker, topic, Some(&first))?;
        for word in ["and", "is", "the"] {
            walker.say(word)?;
        }
        let relations: Vec<_> = lexicon::RELATIONS
            .iter()
            .map(|(of_her, of_him)| (if second.is_she { *of_her } else { *of_him }, 1.0))
            .collect();
        walker.choose(&relations)?;
        for word in ["of", first.name, ".", first.name, "keeps"] {
            walker.say(word)?;
        }
        let number = lexicon::NUMBERS[walker.choose(&zipf(&lexicon::NUMBERS, 0, 1.0))?];
        let color = lexicon::COLORS[walker.choose(&zipf(&lexicon::COLORS, topic, 1.0))?];
        let treasures = strs(&PLURAL_TREASURES);
        let treasures = treasures[walker.choose(&zipf(&treasures, 2 * topic, 1.0))?];
        walker.say("in")?;
        walker.say("a")?;
        let container = lexicon::CONTAINERS[walker.choose(&zipf(&lexicon::CONTAINERS, topic, 1.0))?];
        for word in [".", second.name] {
            walker.say(word)?;
        }
        let feeling = walker.choose(&zipf(&strs(&FEELINGS_S), 0, 1.0))?;
        let creatures = NounClass::Creature.forms(Number::Many);
        let creatures = creatures[walker.choose(&zipf(&creatures, 8 * topic, 1.0))?];
        walker.say(".")?;

        let last_subject = second.referent();
        let people = [first, second];
        let facts = Facts { mood, topic, people, number, color, treasures, container, feeling, creatures };
        Ok(Story { walker, facts, last_subject })
    }

    fn say_all(&mut self, words: &[&'static str]) -> Result<(), W::Error> {
        words.iter().try_for_each(|word| self.walker.say(word))
    }

    /// One sentence of the body; false where the ending began instead, its first word "at" emitted.
    fn sentence(&mut self, n_sentences: usize) -> Result<bool, W::Error> {
        if n_sentences == MAX_SENTENCES {
            self.walker.say("at")?;
            return Ok(false);
        }
        const OTHER_OPENERS: [Weighted; 6] =
            [("when", 0.09), ("in", 0.08), ("where", 0.05), ("how", 0.04), ("what", 0.08), ("who", 0.04)];
        let mut options = self.subject_options();
        let n_subjects = options.len();
        for (_, weight) in &mut options {
            *weight *= 0.62;
        }
        options.extend(OTHER_OPENERS);
        if n_sentences >= MIN_SENTENCES {
            options.push(("at", STOP));
        }
        let choice = self.walker.choose(&options)?;
        if choice < n_subjects {
            self.clause_after(choice, 0)?;
            return self.close_sentence().map(|()| true);
        }
        match options[choice].0 {
            "when" => {
                self.clause(1)?;
                self.walker.say(",")?;
                self.clause(1)?;
                self.close_sentence()?;
            }
            "in" => {
                self.place()?;
                self.walker.say(",")?;
                self.clause(0)?;
                self.close_sentence()?;
            }
            "at" => return Ok(false),
            question => self.question(question)?,
        }
        Ok(true)
    }

    /// A place, mostly one of those where the two people live.
    fn place(&mut self) -> Result<(), W::Error> {
        let homes = [self.facts.people[0].place, self.facts.people[1].place];
        let mut options = zipf(&lexicon::PLACES, 3 * self.facts.topic, 0.3);
        for home in homes {
            options[home].1 = 0.35;
        }
        self.walker.choose(&options).map(drop)
    }

    /// A question about the introduction and its answer; the question word is emitted.
    fn question(&mut self, question_word: &str) -> Result<(), W::Error> {
        let [first, second] = &self.facts.people;
        let names = [(first.name, 0.5), (second.name, 0.5)];
        let homes = [first, second].map(|person| lexicon::PLACES[person.place]);
        let jobs = [first, second].map(|person| lexicon::JOBS[person.job]);
        let (keeper, feeler) = (first.name, second.name);
        let Facts { number, color, treasures, creatures, .. } = self.facts;
        match question_word {
            "where" => {
                self.walker.say("does")?;
                let who = self.walker.choose(&names)?;
                self.say_all(&["live", "?", "in", homes[who], "."])
            }
            "how" => self.say_all(&["many", treasures, "does", keeper, "keep", "?", number, "."]),
            "who" => {
                self.say_all(&["is", "a"])?;
                let who = self.walker.choose(&jobs.map(|job| (job, 0.5)))?;
                self.say_all(&["?", names[who].0, "."])
            }
            _ => match self.walker.choose(&[("color", 0.5), ("does", 0.5)])? {
                0 => self.say_all(&["are", "the", treasures, "?", color, "."]),
                _ => {
                    let feeling = lexicon::FEELINGS[self.facts.feeling];
                    self.say_all(&[feeler, feeling, "?", creatures, "."])
                }
            },
        }
    }

    /// First words of a subject; their weights sum to 1. The order is that of [`Story::subject_after`].
    fn subject_options(&self) -> Vec<Weighted> {
        let [first, second] = &self.facts.people;
        let mut options = vec![(first.name, 0.20), (second.name, 0.15), (self.last_subject.pronoun, 0.20)];
        options.extend(DETERMINERS.map(|(word, _, weight)| (word, 0.45 * weight)));
        options
    }

    /// Subject and verb phrase.
    fn clause(&mut self, depth: usize) -> Result<(), W::Error> {
        let choice = self.walker.choose(&self.subject_options())?;
        self.clause_after(choice, depth)
    }

    /// A clause whose first word is emitted: entry `choice` of [`Story::subject_options`].
    fn clause_after(&mut self, choice: usize, depth: usize) -> Result<(), W::Error> {
        let subject = match choice {
            0 | 1 => self.facts.people[choice].referent(),
            2 => self.last_subject,
            _ => self.common_subject(choice - 3)?,
        };
        self.last_subject = subject;
        self.verb_phrase(subject, depth)
    }

    /// A creature with what may follow it; its determiner is emitted.
    fn common_subject(&mut self, determiner: usize) -> Result<Referent, W::Error> {
        let (noun, number) = self.noun(NounClass::Creature, determiner, 8 * self.facts.topic)?;
        let referent = Referent {
            pronoun: if number == Number::One { "it" } else { "they" },
            number,
            is_person: false,
            habit: noun,
        };
        match self.walker.maybe(&[("that", 0.6), ("near", 0.4)], 0.66)? {
            Some(0) => {
                let verb = self.walker.choose(&zipf(&transitive(number), 9 * (noun % 8), 1.0))?;
                self.noun_phrase(NounClass::Thing, 12 * (verb % 8))?;
            }
            Some(_) => {
                self.noun_phrase(NounClass::Thing, 8 * self.facts.topic)?;
            }
            None => {}
        }
        Ok(referent)
    }

    /// Determiner and noun.
    fn noun_phrase(&mut self, class: NounClass, turn: usize) -> Result<(), W::Error> {
        let determiner = self.walker.choose(&DETERMINERS.map(|(word, _, weight)| (word, weight)))?;
        self.noun(class, determiner, turn).map(drop)
    }

    /// Perhaps an adjective, then a noun of a number that the determiner allows. Returns the noun's index.
    fn noun(&mut self, class: NounClass, determiner: usize, turn: usize) -> Result<(usize, Number), W::Error> {
        self.walker.maybe(&zipf(&lexicon::ADJECTIVES, 5 * self.facts.topic, 1.0), 0.72)?;
        let numbers = DETERMINERS[determiner].1;
        let mut options = Vec::new();
        for &number in numbers {
            options.extend(zipf(&class.forms(number), turn, 1.0));
        }
        let choice = self.walker.choose(&options)?;
        let n_nouns = options.len() / numbers.len();
        Ok((choice % n_nouns, numbers[choice / n_nouns]))
    }

    /// A verb that agrees with `subject`, and what it takes.
    fn verb_phrase(&mut self, subject: Referent, depth: usize) -> Result<(), W::Error> {
        let turn = 9 * (subject.habit % 8);
        let (intransitive, saying, copula) = match subject.number {
            Number::One => (strs(&INTRANSITIVE_S), strs(&SAYING_S), "is"),
            Number::Many => (lexicon::INTRANSITIVE.to_vec(), lexicon::SAYING.to_vec(), "are"),
        };
        let mut options = zipf(&transitive(subject.number), turn, 0.56);
        let n_transitive = options.len();
        options.extend(zipf(&intransitive, turn, 0.24));
        let n_plain = options.len();
        options.push((copula, 0.20));
        if subject.is_person && depth < MAX_DEPTH {
            options.extend(zipf(&saying, turn, 0.16));
        }

        let choice = self.walker.choose(&options)?;
        if choice < n_transitive {
            self.noun_phrase(NounClass::Thing, 12 * (choice % 8))?;
            self.verb_tail()
        } else if choice < n_plain {
            self.walker.maybe(&zipf(&lexicon::ADVERBS, 4 * (choice % 8), 1.0), 0.5)?;
            self.verb_tail()
        } else if choice == n_plain {
            self.walker.choose(&zipf(&lexicon::ADJECTIVES, 5 * self.facts.topic, 1.0)).map(drop)
        } else {
            self.walker.say("that")?;
            self.clause(depth + 1)
        }
    }

    /// Perhaps a preposition and a noun phrase.
    fn verb_tail(&mut self) -> Result<(), W::Error> {
        match self.walker.maybe(&zipf(&lexicon::PREPOSITIONS, 0, 1.0), 0.75)? {
            Some(preposition) => self.noun_phrase(NounClass::Thing, 12 * preposition),
            None => Ok(()),
        }
    }

    /// Perhaps an aside in brackets, then the full stop.
    fn close_sentence(&mut self) -> Result<(), W::Error> {
        self.aside(1)?;
        self.walker.say(".")
    }

    /// Perhaps a bracket with a clause and perhaps another aside in it; brackets close in order.
    fn aside(&mut self, depth: usize) -> Result<(), W::Error> {
        let pass = if depth == 1 { 0.86 } else { 0.6 };
        let Some(kind) = self.walker.maybe(&[("(", 0.6), ("[", 0.4)], pass)? else {
            return Ok(());
        };
        self.clause(depth)?;
        if depth < MAX_DEPTH {
            self.aside(depth + 1)?;
        }
        self.walker.say([")", "]"][kind])
    }

    /// The end, after its first word "at": the facts once more.
    fn ending(mut self) -> Result<(), W::Error> {
        let [first, _] = &self.facts.people;
        let (name, home) = (first.name, lexicon::PLACES[first.place]);
        let Facts { mood, topic, number, color, treasures, container, .. } = self.facts;
        self.say_all(&["last", ",", name, "opens", "the", container, "in", home, "and", "finds", "the"])?;
        self.say_all(&[number, color, treasures, ".", "so", "ends", "the", mood])?;
        self.say_all(&["story", "of", "the", lexicon::TOPICS[topic], "."])
    }
}

fn transitive(number: Number) -> Vec<&'static str> {
    match number {
        Number::One => strs(&TRANSITIVE_S),
        Number::Many => lexicon::TRANSITIVE.to_vec(),
    }
}
