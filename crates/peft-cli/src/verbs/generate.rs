//! `peft generate`: text from a model, with an adapter or without.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
    time::Instant,
};

use clap::Args;
use peft::{
    AutoClass, PeftModel,
    chat::Conversation,
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions},
    },
    tokenizer::Tokenizer as _,
};
use peft_generate::{GenerationConfig, Watch, generate};
use serde_json::{Map, Value, json};

use crate::{
    CliError, Globals,
    session::{self, ModelArgs},
    terminal,
};

/// Let a model go on from a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft generate --model smollm2.gguf --prompt 'The capital of France is'
  peft generate --model smollm2 --adapter out --chat --prompt 'Why is the sky blue?' --stream
  peft generate --model t5 --adapter out --prompt 'recieve' num_beams=4 max_new_tokens=32
  echo 'Once upon a time' | peft generate --model gpt2 do_sample=true temperature=0.8 seed=7

Options of generation have Transformers' names and defaults: those of the model's generation_config.json, and KEY=VALUE over
them. Greedy unless told otherwise.")]
pub(crate) struct Generate {
    /// Folder of the base model, or a GGUF file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of an adapter, or NAME=DIR; may be given several times.
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<String>,
    /// Names of the adapters that act, comma separated; the first one given when absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    active: Vec<String>,
    /// The text to go on from, or the source of an encoder-decoder; may be given several times. Standard input when absent.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Put each prompt into the model's chat template, as what the user says.
    #[arg(long)]
    chat: bool,
    /// Show the text as it is written; for one prompt, without beams.
    #[arg(long)]
    stream: bool,
    /// Options of generation: max_new_tokens, do_sample, temperature, top_k, top_p, num_beams, seed, ….
    #[arg(value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
}

fn option(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    let known = serde_json::to_value(GenerationConfig::default()).unwrap_or_default();
    if known.get(key).is_none() {
        let known: Vec<_> = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(format!("`{key}` is no option of generation (options: {})", known.join(", ")));
    }
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

impl Generate {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        let tokenizer = HfTokenizer::from_folder(&self.model)?;
        let prompts = self.prompts()?;
        let model = self.open(globals)?;
        let info = &model.info();
        let encoded = prompts.iter().map(|prompt| self.encode(prompt, &tokenizer)).collect::<Result<Vec<_>, _>>()?;

        let given: Map<String, Value> = self.options.iter().cloned().collect();
        let folder = if self.model.is_dir() { self.model.clone() } else { PathBuf::new() };
        let mut config = GenerationConfig::of_model(&folder, &info.config)?.with(&given, "the command line")?;
        if config.eos_token_id.is_empty() {
            config.eos_token_id.extend(tokenizer.eos_id());
        }
        if self.stream && (prompts.len() > 1 || config.num_beams > 1 || globals.json) {
            let problem = "--stream is for one prompt, without num_beams and without --json";
            return Err(CliError::Usage(problem.to_owned()));
        }

        let started = Instant::now();
        let mut screen = Screen { tokenizer: &tokenizer, tokens: Vec::new(), shown: 0, on: self.stream };
        let answers = generate(&*model.valid(), info, model.device(), &encoded, &config, &mut screen)?;
        let seconds = started.elapsed().as_secs_f64();
        let written: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
        terminal::note(globals, format!("{written} tokens, {:.1} tokens/s", written as f64 / seconds.max(1e-9)));
        let texts = answers.iter().map(|answer| tokenizer.decode(&answer.tokens)).collect::<peft::Result<Vec<_>>>()?;
        if globals.json {
            let each = answers.len() / prompts.len().max(1);
            let lines = answers.iter().zip(&texts).enumerate().map(|(at, (answer, text))| {
                json!({ "prompt": prompts.get(at / each.max(1)), "text": text, "tokens": answer.tokens, "score": answer.score })
            });
            return terminal::json(&lines.collect::<Vec<_>>());
        }
        if self.stream {
            return terminal::result(texts.first().and_then(|text| text.get(screen.shown..)).unwrap_or_default());
        }
        texts.iter().try_for_each(terminal::result)
    }

    fn prompts(&self) -> Result<Vec<String>, CliError> {
        if !self.prompt.is_empty() {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| CliError::Usage(format!("cannot read a prompt from standard input: {error}")))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(CliError::Usage("no prompt: give --prompt TEXT, or a text on standard input".to_owned())),
            text => Ok(vec![text.to_owned()]),
        }
    }

    fn encode(&self, prompt: &str, tokenizer: &HfTokenizer) -> Result<Vec<u32>, CliError> {
        if !self.chat {
            return Ok(tokenizer.encode(prompt, None, usize::MAX)?.ids);
        }
        let messages = [json!({ "role": "user", "content": prompt })];
        let conversation = Conversation { messages: &messages, tools: None, add_generation_prompt: true };
        Ok(tokenizer.encode_rendered(&tokenizer.render_chat(&conversation)?.text, usize::MAX)?.ids)
    }

    fn open(&self, globals: &Globals) -> Result<PeftModel, CliError> {
        if !self.adapter.is_empty() {
            let (model, adapter, active) = (self.model.clone(), self.adapter.clone(), self.active.clone());
            return ModelArgs { model, adapter, active }.open(globals);
        }
        let device = session::device(globals)?;
        let config = checkpoint::read_config(&self.model)?;
        let crossed = config.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false);
        let class = if crossed { AutoClass::SEQ2SEQ_LM } else { AutoClass::CAUSAL_LM };
        let options = LoadOptions { dtype: session::dtype(globals)?, ..LoadOptions::default() };
        Ok(PeftModel::from_base(checkpoint::load(&self.model, &class, &options, &device)?.base, &device))
    }
}

/// Shows an answer while it is written, never half a character.
struct Screen<'a> {
    tokenizer: &'a HfTokenizer,
    tokens: Vec<u32>,
    /// Bytes of the text that are shown.
    shown: usize,
    on: bool,
}

impl Watch for Screen<'_> {
    fn token(&mut self, _answer: usize, token: u32) {
        if !self.on {
            return;
        }
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens).unwrap_or_default();
        // A character of several tokens decodes to a replacement until its last one is there.
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        if let Some(new) = whole.get(self.shown..).filter(|new| !new.is_empty()) {
            let mut out = std::io::stdout().lock();
            // A closed pipe is told of when the rest is written.
            _ = out.write_all(new.as_bytes()).and_then(|()| out.flush());
            self.shown = whole.len();
        }
    }
}
