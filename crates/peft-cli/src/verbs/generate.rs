//! `peft generate`: text from a model, with an adapter or without.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::Args;
use peft::generate::{DEFAULT_NEW_TOKENS, Generated, GenerationConfig, Generator, Watch, before_stop, settled};
use peft::train::data::{Part, read_part};
use peft::{
    AutoClass, ModelInfo, PeftModel, TaskPlugin,
    data::{
        chat::Conversation,
        example::{EncodeContext, EncodeOptions},
        tokenizer::Tokenizer as _,
    },
    models::{HfTokenizer, checkpoint},
    plugins::registry::plugins,
};
use serde_json::{Value, json};

use super::eval::{column, positive};
use crate::{CliError, Globals, generation_args::GenerationArgs, session::ModelArgs, terminal};

/// Generate text from a prompt
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft generate --model smollm2.gguf --prompt 'The capital of France is'
  peft generate --model smollm2 --adapter out --chat --prompt 'Why is the sky blue?' --stream
  peft generate --model smollm2 --adapter a=out-a --adapter b=out-b --prompt 'One' --prompt 'Two' --adapter-names a,b
  peft generate --model t5 --adapter out --prompt 'recieve' num_beams=4 max_new_tokens=32
  peft generate --model smollm2 --data questions.jsonl --stop-token '<|im_end|>' --json > answers.json
  echo 'Once upon a time' | peft generate --model gpt2 do_sample=true temperature=0.8 seed=7 --stop '.'

Options of generation have Transformers' names and defaults: those of the model's generation_config.json, and KEY=VALUE or
--key VALUE over them. Greedy unless told otherwise.")]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// The adapter of each prompt, `__base__` for none, comma separated; prompts of different ones run in one batch.
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "active", requires = "adapter")]
    adapter_names: Vec<String>,
    /// The text to go on from, or the source of an encoder-decoder; may be given several times. Standard input when absent.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Put each prompt into the model's chat template, as what the user says.
    #[arg(long)]
    chat: bool,
    /// A file of prompts, sources, texts or conversations, with the columns of the model's task.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat"])]
    data: Option<PathBuf>,
    /// The column of the file that plays a role, such as prompt=question; may be given several times.
    #[arg(long, value_name = "ROLE=NAME", value_parser = column, requires = "data")]
    column: Vec<(String, String)>,
    /// Prompts of a batch.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch_size: usize,
    /// Show the text as it is written; for one prompt and one answer, without beams.
    #[arg(long)]
    stream: bool,
    /// Most tokens of prompt and answer together.
    #[arg(long, value_name = "N", value_parser = positive, alias = "max_length", hide = true)]
    max_length: Option<usize>,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// A prompt as it was given and as the model reads it.
struct Prompt {
    text: String,
    tokens: Vec<u32>,
}

impl Generate {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        let given = if self.data.is_none() { self.texts()? } else { Vec::new() };
        let mut model = self.open(globals)?;
        let tokenizer = HfTokenizer::from_folder(self.model.tokenizer_folder())?;
        let info = &Arc::clone(model.info());
        let prompts: Vec<Prompt> = match &self.data {
            Some(file) => self.rows(file, info, &tokenizer)?,
            None => given.into_iter().map(|text| self.encode(text, &tokenizer)).collect::<Result<_, _>>()?,
        };
        let of_model = GenerationConfig::of_model(self.model.folder(), &info.config)?;
        let generation = self.generation.clone().and("max_length", self.max_length.map(Value::from));
        let config = generation.over(&of_model, &tokenizer, globals)?;
        let several = prompts.len() > 1 || config.num_beams > 1 || config.num_return_sequences > 1;
        if self.stream && (several || globals.json) {
            let problem =
                "--stream is for one prompt and one answer: without num_beams, num_return_sequences and --json";
            return Err(CliError::Usage(problem.to_owned()));
        }

        if !self.adapter_names.is_empty() && self.adapter_names.len() != prompts.len() {
            let problem = format!("--adapter-names: {} names for {} prompts", self.adapter_names.len(), prompts.len());
            return Err(CliError::Usage(problem));
        }
        let started = Instant::now();
        let stops = config.stop_strings.as_slice();
        let mut screen = Screen { tokenizer: &tokenizer, stops, tokens: Vec::new(), shown: 0, on: self.stream };
        let mut answers: Vec<Generated> = Vec::new();
        for (at, batch) in prompts.chunks(self.batch_size).enumerate() {
            // Batches that draw, draw different numbers.
            let seed = config.seed.wrapping_add((at * self.batch_size) as u64);
            let tokens: Vec<Vec<u32>> = batch.iter().map(|prompt| prompt.tokens.clone()).collect();
            let names = self.adapter_names.iter().skip(at * self.batch_size).take(batch.len());
            let names: Vec<&str> = names.map(String::as_str).collect();
            if !names.is_empty() {
                model.set_rows_of_beams(&names, config.num_beams.max(config.num_return_sequences))?;
            }
            let running = model.valid();
            let generator = Generator { model: &running, device: model.device(), tokenizer: Some(&tokenizer) };
            answers.extend(generator.generate(&tokens, &GenerationConfig { seed, ..config.clone() }, &mut screen)?);
        }
        let seconds = started.elapsed().as_secs_f64();
        let written: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
        terminal::note(globals, format!("{written} tokens, {:.1} tokens/s", written as f64 / seconds.max(1e-9)));
        let cut = answers.iter().filter(|answer| !answer.ended).count();
        if cut > 0 && config.has_default_length() {
            let all = answers.len();
            terminal::note(
                globals,
                format!(
                    "note: {cut} of {all} answers did not end within {DEFAULT_NEW_TOKENS} new tokens: see max_new_tokens"
                ),
            );
        }
        let text = |answer: &Generated| -> Result<String, CliError> {
            Ok(before_stop(&tokenizer.decode(&answer.tokens)?, stops).to_owned())
        };
        let texts = answers.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if globals.json {
            let each = (answers.len() / prompts.len().max(1)).max(1);
            let lines = answers.iter().zip(&texts).enumerate().map(|(at, (answer, text))| {
                let prompt = prompts.get(at / each).map(|prompt| &prompt.text);
                json!({ "prompt": prompt, "text": text, "tokens": answer.tokens, "score": answer.score, "ended": answer.ended })
            });
            return terminal::json(&lines.collect::<Vec<_>>());
        }
        if self.stream {
            return terminal::verbatim(texts.first().and_then(|text| text.get(screen.shown..)).unwrap_or_default());
        }
        texts.iter().try_for_each(terminal::verbatim)
    }

    /// The prompts of the command line, or standard input.
    fn texts(&self) -> Result<Vec<String>, CliError> {
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

    fn encode(&self, text: String, tokenizer: &HfTokenizer) -> Result<Prompt, CliError> {
        if !self.chat {
            let tokens = tokenizer.encode(&text, None, usize::MAX)?.ids;
            return Ok(Prompt { text, tokens });
        }
        let messages = [json!({ "role": "user", "content": text })];
        let conversation = Conversation { messages: &messages, tools: None, add_generation_prompt: true };
        let tokens = tokenizer.encode_rendered(&tokenizer.render_chat(&conversation)?.text, usize::MAX)?.ids;
        Ok(Prompt { text, tokens })
    }

    /// What the rows of a file ask for; a row that is a whole text is gone on from.
    fn rows(&self, file: &Path, info: &ModelInfo, tokenizer: &HfTokenizer) -> Result<Vec<Prompt>, CliError> {
        let class = class_of(info.config.get("is_encoder_decoder"));
        let tasks = plugins::<TaskPlugin>();
        let Some(task) = tasks.iter().find(|task| task.auto_class == class) else {
            return Err(CliError::Usage(format!("--data: no task of {class} is linked into this program")));
        };
        let columns = self.column.iter().cloned().collect();
        let options = EncodeOptions { columns, max_length: usize::MAX, ..EncodeOptions::default() };
        let context = EncodeContext { tokenizer, info, options: &options, labelled: false };
        let rows = read_part(file, Part::Test)?;
        task.task.check_rows(&rows, &context)?;
        let prompt = |row| -> Result<Prompt, CliError> {
            let tokens = match task.task.asks(row, &context)? {
                Some(asked) => asked.prompt,
                None => tokenizer.encode(row.text(context.column("text"))?, None, usize::MAX)?.ids,
            };
            Ok(Prompt { text: tokenizer.decode_with_special(&tokens)?, tokens })
        };
        rows.iter().map(prompt).collect()
    }

    fn open(&mut self, globals: &Globals) -> Result<PeftModel, CliError> {
        if !self.model.adapters().is_empty() {
            return self.model.open(globals);
        }
        let folder = self.model.locate(globals)?;
        let class = class_of(checkpoint::read_config(&folder)?.get("is_encoder_decoder"));
        self.model.open_as(Some(class), globals)
    }
}

fn class_of(is_encoder_decoder: Option<&Value>) -> AutoClass {
    let crossed = is_encoder_decoder.and_then(Value::as_bool).unwrap_or(false);
    if crossed { AutoClass::SEQ2SEQ_LM } else { AutoClass::CAUSAL_LM }
}

/// Shows an answer while it is written: never half a character, and nothing that may belong to a stop string.
struct Screen<'a> {
    tokenizer: &'a HfTokenizer,
    stops: &'a [String],
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
        let certain = settled(self.tokenizer.settled(text.trim_end_matches(char::REPLACEMENT_CHARACTER)), self.stops);
        if let Some(new) = certain.get(self.shown..).filter(|new| !new.is_empty()) {
            let mut out = std::io::stdout().lock();
            // A closed pipe is told of when the rest is written.
            _ = out.write_all(new.as_bytes()).and_then(|()| out.flush());
            self.shown = certain.len();
        }
    }
}
