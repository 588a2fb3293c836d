//! Conversations: which text a model expects around the turns.
//!
//! Templates are Jinja programs; those in use are few. The known ones are recognised by the tokens that they put around
//! turns and written out here. An unknown one is an error: a guess would make a model answer badly without a sign of why.

use anyhow::{Context, bail};

/// A known template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// `<|im_start|>role`, the turn, `<|im_end|>`; with the system message that the template begins with by default.
    ChatMl {
        /// What stands in place of a system message that is not given.
        default_system: Option<String>,
    },
    /// `[INST] user [/INST] assistant`, the system message inside the first turn (Llama 2).
    Llama2,
    /// `<|start_header_id|>role<|end_header_id|>`, the turn, `<|eot_id|>` (Llama 3).
    Llama3,
}

impl ChatFormat {
    /// The format of a model's template.
    ///
    /// # Errors
    /// A model without a template, or one that is not known.
    pub fn of(template: Option<&str>) -> anyhow::Result<Self> {
        let template = template.context(
            "this model has no chat template (it is no chat model, or its tokenizer_config.json is missing); use `experiments generate`",
        )?;
        if template.contains("<|im_start|>") {
            Ok(Self::ChatMl { default_system: default_system(template) })
        } else if template.contains("<|start_header_id|>") {
            Ok(Self::Llama3)
        } else if template.contains("[INST]") && template.contains("<<SYS>>") {
            Ok(Self::Llama2)
        } else {
            bail!(
                "this model's chat template is not one of ChatML, Llama 2 and Llama 3; use `experiments generate` with the whole text as the prompt"
            )
        }
    }

    /// The text up to where the model answers the first message.
    pub fn first_turn(&self, system: Option<&str>, user: &str) -> String {
        match self {
            Self::ChatMl { default_system } => {
                let system = system.or(default_system.as_deref());
                let system = system.map_or_else(String::new, |text| format!("<|im_start|>system\n{text}<|im_end|>\n"));
                system + &chat_ml_turn(user)
            }
            Self::Llama2 => {
                let system = system.map_or_else(String::new, |text| format!("<<SYS>>\n{text}\n<</SYS>>\n\n"));
                format!("<s>[INST] {system}{user} [/INST]")
            }
            Self::Llama3 => {
                let system = system.map_or_else(String::new, |text| llama3_turn("system", text));
                format!("<|begin_of_text|>{system}{}", llama3_question(user))
            }
        }
    }

    /// The text from the end of an answer (its end token not yet fed) up to where the model answers again.
    pub fn next_turn(&self, user: &str) -> String {
        match self {
            Self::ChatMl { .. } => format!("<|im_end|>\n{}", chat_ml_turn(user)),
            Self::Llama2 => format!("</s><s>[INST] {user} [/INST]"),
            Self::Llama3 => format!("<|eot_id|>{}", llama3_question(user)),
        }
    }

    /// The token with which the model ends an answer.
    pub fn end_token(&self) -> &'static str {
        match self {
            Self::ChatMl { .. } => "<|im_end|>",
            Self::Llama2 => "</s>",
            Self::Llama3 => "<|eot_id|>",
        }
    }
}

fn chat_ml_turn(user: &str) -> String {
    format!("<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")
}

fn llama3_turn(role: &str, text: &str) -> String {
    format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>")
}

fn llama3_question(user: &str) -> String {
    llama3_turn("user", user) + "<|start_header_id|>assistant<|end_header_id|>\n\n"
}

/// The system message that a ChatML template holds as a literal.
fn default_system(template: &str) -> Option<String> {
    ["<|im_start|>system\n", "<|im_start|>system\\n"].into_iter().find_map(|start| {
        let (_, rest) = template.split_once(start)?;
        let (text, _) = rest.split_once("<|im_end|>")?;
        // In a template that only puts a given message there, an expression follows.
        let is_literal = !text.is_empty() && !text.contains(['\'', '"', '{', '}']);
        is_literal.then(|| text.replace("\\n", "\n"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SMOLLM: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";

    #[test]
    fn chat_ml_has_the_templates_own_system_message() {
        let format = ChatFormat::of(Some(SMOLLM)).unwrap();
        assert_eq!(
            format.first_turn(None, "Hi"),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            format.first_turn(Some("Be brief."), "Hi"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(format.next_turn("So?"), "<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n");
        let plain = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'}}";
        assert_eq!(ChatFormat::of(Some(plain)).unwrap(), ChatFormat::ChatMl { default_system: None });
        let escaped = "{{ '<|im_start|>system\\nTwo\\nlines.<|im_end|>\\n' }}";
        let default_system = Some("Two\nlines.".to_owned());
        assert_eq!(ChatFormat::of(Some(escaped)).unwrap(), ChatFormat::ChatMl { default_system });
        let given = "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}";
        assert_eq!(ChatFormat::of(Some(given)).unwrap(), ChatFormat::ChatMl { default_system: None });
    }

    #[test]
    fn llama_formats_are_those_of_their_model_cards() {
        let llama2 = ChatFormat::of(Some("{{ '[INST] ' + '<<SYS>>\\n' }}")).unwrap();
        assert_eq!(llama2.first_turn(Some("S"), "U"), "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]");
        assert_eq!(llama2.next_turn("V"), "</s><s>[INST] V [/INST]");
        let llama3 = ChatFormat::of(Some("{{ '<|start_header_id|>' + role }}")).unwrap();
        assert_eq!(
            llama3.first_turn(None, "U"),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n"
        );
    }

    #[test]
    fn an_unknown_template_is_an_error() {
        let error = |template| ChatFormat::of(template).unwrap_err().to_string();
        assert!(error(Some("<start_of_turn>")).starts_with("this model's chat template is not one of ChatML,"));
        assert!(error(None).starts_with("this model has no chat template"));
    }
}
