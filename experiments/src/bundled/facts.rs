//! What a document introduces and comes back to: its first sentences, the questions about them, and its end.

use super::lexicon;
use super::walker::{Walker, Weighted, zipf};

/// One of the two people of a document.
pub(super) struct Person {
    /// Index into [`lexicon::NAMES_SHE`] followed by [`lexicon::NAMES_HE`].
    name_idx: usize,
    pub(super) name: &'static str,
    pub(super) is_she: bool,
    /// Index into [`lexicon::JOBS`].
    pub(super) job: usize,
    /// Index into [`lexicon::PLACES`].
    pub(super) place: usize,
}

/// What the introduction fixed for the rest of the document.
pub(super) struct Facts {
    pub(super) people: [Person; 2],
    /// Index into [`lexicon::TOPICS`].
    pub(super) topic: usize,
    mood: &'static str,
    number: &'static str,
    color: &'static str,
    treasures: &'static str,
    container: &'static str,
    /// Index into [`lexicon::FEELINGS`].
    feeling: usize,
    creatures: &'static str,
}

/// Chooses an option that is not option `taken`; returns its index among all.
fn choose_other<W: Walker>(
    walker: &mut W,
    mut options: Vec<Weighted>,
    taken: Option<usize>,
) -> Result<usize, W::Error> {
    if let Some(taken) = taken {
        options.remove(taken);
    }
    let choice = walker.choose(&options)?;
    Ok(choice + usize::from(taken.is_some_and(|taken| choice >= taken)))
}

impl Person {
    /// Introduces a person up to the place: "Mara, a quiet baker, lives in Dunford". Name, job and place differ from
    /// those of `other`, so that each tells who is meant.
    fn introduce<W: Walker>(walker: &mut W, topic: usize, other: Option<&Person>) -> Result<Person, W::Error> {
        let names = [lexicon::NAMES_SHE, lexicon::NAMES_HE].concat();
        let options = names.iter().map(|name| (*name, 1.0)).collect();
        let name_idx = choose_other(walker, options, other.map(|other| other.name_idx))?;
        walker.say_all(&[",", "a"])?;
        walker.choose(&zipf(&lexicon::ADJECTIVES, 5 * topic, 1.0))?;
        let options = zipf(&lexicon::JOBS, 3 * topic, 1.0);
        let job = choose_other(walker, options, other.map(|other| other.job))?;
        walker.say_all(&[",", "lives", "in"])?;
        let options = zipf(&lexicon::PLACES, 3 * topic, 1.0);
        let place = choose_other(walker, options, other.map(|other| other.place))?;
        let is_she = name_idx < lexicon::NAMES_SHE.len();
        Ok(Person { name_idx, name: names[name_idx], is_she, job, place })
    }
}

impl Facts {
    /// Walks the introduction: every fact that the rest of the document can come back to.
    pub(super) fn introduce<W: Walker>(walker: &mut W) -> Result<Self, W::Error> {
        walker.say_all(&["this", "is", "a"])?;
        let mood = lexicon::MOODS[walker.choose(&zipf(&lexicon::MOODS, 0, 1.0))?];
        walker.say_all(&["story", "of", "the"])?;
        let topic = walker.choose(&zipf(&lexicon::TOPICS, 0, 1.0))?;
        walker.say(".")?;

        let first = Person::introduce(walker, topic, None)?;
        walker.say(".")?;
        let second = Person::introduce(walker, topic, Some(&first))?;
        walker.say_all(&["and", "is", "the"])?;
        let relations: Vec<_> = lexicon::RELATIONS
            .iter()
            .map(|(of_her, of_him)| (if second.is_she { *of_her } else { *of_him }, 1.0))
            .collect();
        walker.choose(&relations)?;

        walker.say_all(&["of", first.name, ".", first.name, "keeps"])?;
        let number = lexicon::NUMBERS[walker.choose(&zipf(&lexicon::NUMBERS, 0, 1.0))?];
        let color = lexicon::COLORS[walker.choose(&zipf(&lexicon::COLORS, topic, 1.0))?];
        let treasures = &lexicon::PLURAL_TREASURES;
        let treasures = treasures[walker.choose(&zipf(treasures, 2 * topic, 1.0))?];
        walker.say_all(&["in", "a"])?;
        let container = walker.choose(&zipf(&lexicon::CONTAINERS, topic, 1.0))?;
        let container = lexicon::CONTAINERS[container];

        walker.say_all(&[".", second.name])?;
        let feeling = walker.choose(&zipf(&lexicon::FEELINGS_S, 0, 1.0))?;
        let creatures = &lexicon::PLURAL_CREATURES;
        let creatures = creatures[walker.choose(&zipf(creatures, 8 * topic, 1.0))?];
        walker.say(".")?;
        let people = [first, second];
        Ok(Facts { people, topic, mood, number, color, treasures, container, feeling, creatures })
    }

    /// Walks a question about the introduction and its answer, after the question's first word.
    pub(super) fn question<W: Walker>(&self, walker: &mut W, question_word: &str) -> Result<(), W::Error> {
        let [first, second] = &self.people;
        let names = [first, second].map(|person| (person.name, 0.5));
        let homes = [first, second].map(|person| lexicon::PLACES[person.place]);
        let jobs = [first, second].map(|person| (lexicon::JOBS[person.job], 0.5));
        match question_word {
            "where" => {
                walker.say("does")?;
                let who = walker.choose(&names)?;
                walker.say_all(&["live", "?", "in", homes[who], "."])
            }
            "how" => {
                walker.say_all(&["many", self.treasures, "does", first.name, "keep", "?"])?;
                walker.say_all(&[self.number, "."])
            }
            "who" => {
                walker.say_all(&["is", "a"])?;
                let who = walker.choose(&jobs)?;
                walker.say_all(&["?", names[who].0, "."])
            }
            // "what"
            _ => match walker.choose(&[("color", 0.5), ("does", 0.5)])? {
                0 => walker.say_all(&["are", "the", self.treasures, "?", self.color, "."]),
                _ => {
                    let feeling = lexicon::FEELINGS[self.feeling];
                    walker.say_all(&[second.name, feeling, "?", self.creatures, "."])
                }
            },
        }
    }

    /// Walks the end of the document, after its first word "at": the facts once more.
    pub(super) fn ending<W: Walker>(&self, walker: &mut W) -> Result<(), W::Error> {
        let [first, _] = &self.people;
        walker.say_all(&["last", ",", first.name, "opens", "the", self.container])?;
        walker.say_all(&["in", lexicon::PLACES[first.place], "and", "finds", "the"])?;
        walker.say_all(&[self.number, self.color, self.treasures, "."])?;
        walker.say_all(&["so", "ends", "the", self.mood])?;
        walker.say_all(&["story", "of", "the", lexicon::TOPICS[self.topic], "."])
    }
}
