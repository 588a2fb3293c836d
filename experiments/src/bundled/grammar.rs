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
//! [`super::walker`] says why the probability of a text is known exactly.

use super::facts::{Facts, Person};
use super::lexicon;
use super::walker::{Walker, Weighted, zipf};

/// Sentences in the body of a document, at most; the chance to stop begins after [`MIN_SENTENCES`].
const MAX_SENTENCES: usize = 14;
const MIN_SENTENCES: usize = 4;
/// Weight of stopping against a total of about 1 for going on.
const STOP: f64 = 0.16;
/// Clauses inside clauses, and brackets inside brackets, at most.
const MAX_DEPTH: usize = 3;

/// Walks one document, from its first word to its last full stop.
pub(super) fn document<W: Walker>(walker: &mut W) -> Result<(), W::Error> {
    let facts = Facts::introduce(walker)?;
    let last_subject = Referent::of(&facts.people[1]);
    let mut story = Story { walker, facts, last_subject };
    let mut n_sentences = 0;
    while story.sentence(n_sentences)? {
        n_sentences += 1;
    }
    story.facts.ending(story.walker)
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
    fn forms(self, number: Number) -> &'static [&'static str] {
        match (self, number) {
            (NounClass::Creature, Number::One) => &lexicon::CREATURES,
            (NounClass::Thing, Number::One) => &lexicon::THINGS,
            (NounClass::Creature, Number::Many) => &lexicon::PLURAL_CREATURES,
            (NounClass::Thing, Number::Many) => &lexicon::PLURAL_THINGS,
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

impl Referent {
    fn of(person: &Person) -> Self {
        Referent {
            pronoun: if person.is_she { "she" } else { "he" },
            number: Number::One,
            is_person: true,
            habit: person.job,
        }
    }
}

/// A document under way.
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

impl<W: Walker> Story<'_, W> {
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
            question => self.facts.question(self.walker, question)?,
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
            0 | 1 => Referent::of(&self.facts.people[choice]),
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
                let verb = self.walker.choose(&zipf(transitive(number), 9 * (noun % 8), 1.0))?;
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
            options.extend(zipf(class.forms(number), turn, 1.0));
        }
        let choice = self.walker.choose(&options)?;
        let n_nouns = options.len() / numbers.len();
        Ok((choice % n_nouns, numbers[choice / n_nouns]))
    }

    /// A verb that agrees with `subject`, and what it takes.
    fn verb_phrase(&mut self, subject: Referent, depth: usize) -> Result<(), W::Error> {
        let turn = 9 * (subject.habit % 8);
        let (intransitive, saying, copula): (&[_], &[_], _) = match subject.number {
            Number::One => (&lexicon::INTRANSITIVE_S, &lexicon::SAYING_S, "is"),
            Number::Many => (&lexicon::INTRANSITIVE, &lexicon::SAYING, "are"),
        };
        let mut options = zipf(transitive(subject.number), turn, 0.56);
        let n_transitive = options.len();
        options.extend(zipf(intransitive, turn, 0.24));
        let n_plain = options.len();
        options.push((copula, 0.20));
        if subject.is_person && depth < MAX_DEPTH {
            options.extend(zipf(saying, turn, 0.16));
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
}

fn transitive(number: Number) -> &'static [&'static str] {
    match number {
        Number::One => &lexicon::TRANSITIVE_S,
        Number::Many => &lexicon::TRANSITIVE,
    }
}
