//! Target selection: which modules a tuner adapts, rule by rule as PEFT applies them, and the reason for each.

use std::collections::{BTreeSet, HashMap, HashSet};

use peft_core::{
    Error, ModelInfo, ModuleKind, ModuleTree, Result,
    error::{nearest, quoted},
    plugins::plan::{SkipReason, Skipped, TaskRules},
};
use serde::{Deserialize, Serialize};

use crate::{
    alternatives::{Alternative, alternatives},
    heads::SavedModules,
    pattern::Pattern,
};

/// One value or a list of them, as PEFT's keys allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// The keys by which a configuration chooses modules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Targets {
    /// A list of name endings, a regular expression for whole names, or `all-linear`; none for the architecture's default.
    pub target_modules: Option<OneOrMany<String>>,
    /// A list of name endings or a regular expression for whole names: never adapted.
    pub exclude_modules: Option<OneOrMany<String>>,
    /// Modules that are trained and saved in full.
    pub modules_to_save: Option<Vec<String>>,
    /// Layer indices to which a list of targets is limited.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// The name before the layer index, where it is not the usual place.
    pub layers_pattern: Option<OneOrMany<String>>,
}

/// What a tuner can adapt and where it does so by default.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The tuner, for messages.
    pub tuner: &'a str,
    /// The kinds of module it adapts.
    pub supported: &'a [ModuleKind],
    /// The architecture's default targets.
    pub defaults: Option<&'static [&'static str]>,
    /// Whether a list of 20 targets or more is replaced by shorter endings that mean the same.
    pub shorten: bool,
    /// Whether every entry must match something. Not so for saved adapters, which PEFT wrote without this check.
    pub strict: bool,
}

/// The outcome of target selection.
#[derive(Debug)]
pub struct Selection {
    /// Names and reasons of the modules to adapt, in the order of the model.
    pub adapted: Vec<(String, String)>,
    /// Linear-like modules that are not adapted, with the rule for each.
    pub skipped: Vec<Skipped>,
    /// The modules that are trained in full.
    pub saved: SavedModules,
    /// `target_modules` as the adapter's file will have it.
    pub target_modules: OneOrMany<String>,
    /// Remarks for `explain`.
    pub notes: Vec<String>,
}

enum Matcher {
    Whole(String, Pattern),
    /// The entries, and where each stands.
    Endings(Vec<String>, HashMap<String, usize>),
}

impl Matcher {
    fn new(key: &str, value: &OneOrMany<String>) -> Result<Self> {
        Ok(match value {
            OneOrMany::One(pattern) => Self::Whole(pattern.clone(), Pattern::full(key, pattern)?),
            OneOrMany::Many(entries) => {
                let places = entries.iter().enumerate().rev().map(|(at, entry)| (entry.clone(), at)).collect();
                Self::Endings(entries.clone(), places)
            }
        })
    }

    /// The entry that matches, and whether it is the whole name.
    fn find(&self, name: &str) -> Result<Option<(&str, bool)>> {
        Ok(match self {
            Self::Whole(pattern, regex) => regex.is_match(name)?.then_some((pattern.as_str(), true)),
            Self::Endings(entries, places) => {
                let entry = |at: &usize| entries.get(*at).map(String::as_str);
                match places.get(name).and_then(entry) {
                    Some(entry) => Some((entry, true)),
                    None => {
                        endings(name).filter_map(|ending| places.get(ending)).min().and_then(entry).map(|e| (e, false))
                    }
                }
            }
        })
    }
}

/// What follows a dot in the name, the longest first: those after a dot at its very end are none.
fn endings(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, rest)| rest.split_once('.')).map(|(_, rest)| rest)
}

/// The endings of a dotted name, the name itself first.
fn with_endings(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once(name).chain(endings(name))
}

impl Targets {
    fn check(&self) -> Result<()> {
        let one = matches!(self.target_modules, Some(OneOrMany::One(_)));
        let layers_pattern = self.layers_pattern.as_ref().is_some_and(|patterns| !patterns.as_slice().is_empty());
        if one && self.layers_to_transform.is_some() {
            let problem = "cannot be combined with a `target_modules` that is a string: give a list, or put the layers into the regular expression";
            return Err(Error::config("layers_to_transform", problem));
        }
        if one && layers_pattern {
            return Err(Error::config("layers_pattern", "cannot be combined with a `target_modules` that is a string"));
        }
        if layers_pattern && self.layers_to_transform.is_none() {
            return Err(Error::config("layers_pattern", "needs `layers_to_transform`"));
        }
        Ok(())
    }

    /// Decides for every module of the model.
    ///
    /// # Errors
    /// [`Error::Config`] for keys that contradict each other or entries that match nothing, [`Error::NothingTargeted`],
    /// [`Error::UnsupportedModule`].
    pub fn select(&self, tree: &ModuleTree, info: &ModelInfo, task: &TaskRules, rules: Rules<'_>) -> Result<Selection> {
        self.check()?;
        let user = self.modules_to_save.as_deref().unwrap_or_default();
        let saved = SavedModules::new(user, task, tree, rules.strict)?;
        let mut notes = saved.notes.clone();
        let mut heads: Vec<(String, SkipReason)> = Vec::new();

        let (targets, origin) = match &self.target_modules {
            Some(OneOrMany::One(word)) if word.eq_ignore_ascii_case("all-linear") => {
                let names = all_linear(tree, info, &saved, &mut heads)?;
                (OneOrMany::Many(names), Origin::AllLinear)
            }
            Some(given) => (given.clone(), Origin::Given),
            None => match rules.defaults {
                Some(names) => {
                    notes.push(format!(
                        "target_modules: not given; {} are adapted at {}",
                        info.model_type,
                        names.join(", ")
                    ));
                    (OneOrMany::Many(names.iter().map(|name| (*name).to_owned()).collect()), Origin::Default)
                }
                None => return Err(Error::config("target_modules", no_default(tree, info))),
            },
        };
        let targets = match targets {
            OneOrMany::Many(names) if rules.shorten && names.len() >= 20 => OneOrMany::Many(shorten(&names, tree)),
            other => other,
        };
        let matcher = Matcher::new("target_modules", &targets)?;
        let exclude = self.exclude_modules.as_ref().map(|value| Matcher::new("exclude_modules", value)).transpose()?;
        let layers = Layers::new(self)?;

        let mut selection =
            Selection { adapted: Vec::new(), skipped: Vec::new(), saved, target_modules: targets.clone(), notes };
        let mut used: BTreeSet<String> = BTreeSet::new();
        let mut excluded = 0;
        for module in &tree.modules {
            let name = module.name.as_str();
            let verdict = self.judge(name, &matcher, exclude.as_ref(), &layers, &selection.saved)?;
            if let Some((entry, _)) = matcher.find(name)? {
                used.insert(entry.to_owned());
            }
            let reason = match verdict {
                Verdict::Adapt(entry) => {
                    if rules.supported.contains(&module.kind) {
                        selection.adapted.push((name.to_owned(), origin.reason(&entry, &matcher)));
                        continue;
                    }
                    // A regular expression that names a container means the layers inside that it also names.
                    if matches!(matcher, Matcher::Whole(..)) {
                        continue;
                    }
                    return Err(Error::UnsupportedModule {
                        module: name.to_owned(),
                        kind: module.kind.label().to_owned(),
                        tuner: rules.tuner.to_owned(),
                        supported: rules.supported.iter().map(ModuleKind::label).collect::<Vec<_>>().join(", "),
                    });
                }
                Verdict::Skip(reason) => {
                    excluded += usize::from(matches!(reason, SkipReason::Excluded { .. }));
                    match heads.iter().find(|(head, _)| head == name) {
                        Some((_, head)) if reason == SkipReason::NotTargeted => head.clone(),
                        _ => reason,
                    }
                }
            };
            if module.kind.is_linear() {
                selection.skipped.push(Skipped { module: name.to_owned(), reason });
            }
        }
        if self.exclude_modules.is_some() && excluded == 0 {
            selection.notes.push("exclude_modules: no module is excluded by it".to_owned());
        }
        if rules.strict && matches!(origin, Origin::Given) {
            refuse_saved(&targets, &matcher, tree, &selection)?;
        }
        if selection.adapted.is_empty() {
            return Err(Error::NothingTargeted(nothing(&targets, self, tree, excluded)));
        }
        if let OneOrMany::Many(entries) = &targets {
            unmatched(entries, &used, tree, rules.strict, &mut selection.notes)?;
        }
        // PEFT's own files come from all kinds of models, and part of their patterns is for others.
        if rules.strict {
            let patterns = [("target_modules", Some(&targets)), ("exclude_modules", self.exclude_modules.as_ref())];
            for (key, pattern) in patterns {
                if let Some(OneOrMany::One(pattern)) = pattern {
                    selection.notes.extend(idle_alternatives(key, pattern, tree));
                }
            }
        }
        Ok(selection)
    }

    /// PEFT's rules for one name, in PEFT's order.
    fn judge(
        &self,
        name: &str,
        matcher: &Matcher,
        exclude: Option<&Matcher>,
        layers: &Layers,
        saved: &SavedModules,
    ) -> Result<Verdict> {
        if let Some(exclude) = exclude
            && let Some((entry, _)) = exclude.find(name)?
        {
            return Ok(Verdict::Skip(SkipReason::Excluded { entry: entry.to_owned() }));
        }
        if let Some(reason) = saved.protects(name)? {
            return Ok(Verdict::Skip(reason));
        }
        Ok(match matcher.find(name)? {
            None => Verdict::Skip(SkipReason::NotTargeted),
            Some((entry, true)) => Verdict::Adapt(entry.to_owned()),
            Some((entry, false)) => match layers.refuses(name)? {
                None => Verdict::Adapt(entry.to_owned()),
                Some(reason) => Verdict::Skip(reason),
            },
        })
    }
}

enum Verdict {
    Adapt(String),
    Skip(SkipReason),
}

#[derive(Clone, Copy)]
enum Origin {
    AllLinear,
    Given,
    Default,
}

impl Origin {
    fn reason(self, entry: &str, matcher: &Matcher) -> String {
        match (self, matcher) {
            (Self::AllLinear, _) => "all-linear".to_owned(),
            (Self::Default, _) => format!("default of the architecture: `{entry}`"),
            (Self::Given, Matcher::Whole(..)) => format!("target_modules matches: `{entry}`"),
            (Self::Given, Matcher::Endings(..)) => format!("target_modules: `{entry}`"),
        }
    }
}

/// `layers_to_transform` and `layers_pattern`.
struct Layers {
    wanted: Vec<usize>,
    patterns: Vec<Pattern>,
}

impl Layers {
    fn new(targets: &Targets) -> Result<Self> {
        let wanted = targets.layers_to_transform.as_ref().map_or_else(Vec::new, |layers| layers.as_slice().to_vec());
        let given = targets.layers_pattern.as_ref().map_or(&[][..], OneOrMany::as_slice);
        let patterns = if given.is_empty() {
            // At least two parts of a name stand before the number: `model.layers.3.`
            vec![Pattern::inside("layers_pattern", "[^.]*", r"^.*?\.{}\.(\d+)\.")?]
        } else {
            let pattern = |p: &String| Pattern::inside("layers_pattern", p, r"^(?:^|.*?\.){}\.(\d+)\.");
            given.iter().map(pattern).collect::<Result<_>>()?
        };
        Ok(Self { wanted, patterns })
    }

    fn refuses(&self, name: &str) -> Result<Option<SkipReason>> {
        if self.wanted.is_empty() {
            return Ok(None);
        }
        let mut index = None;
        for pattern in &self.patterns {
            index = pattern.first_group(name)?.and_then(|number| number.parse::<usize>().ok());
            if index.is_some() {
                break;
            }
        }
        Ok(match index {
            Some(index) if self.wanted.contains(&index) => None,
            index => Some(SkipReason::LayerNotSelected { index }),
        })
    }
}

fn all_linear(
    tree: &ModuleTree,
    info: &ModelInfo,
    saved: &SavedModules,
    heads: &mut Vec<(String, SkipReason)>,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for module in tree.modules.iter().filter(|module| module.kind.is_linear()) {
        let name = &module.name;
        if info.output_embedding.as_ref() == Some(name) {
            heads.push((name.clone(), SkipReason::OutputEmbedding));
        } else if let Some(reason) = saved.protects(name)? {
            heads.push((name.clone(), reason));
        } else {
            names.push(name.clone());
        }
    }
    Ok(names)
}

/// Replaces a long list of full names by the shortest endings that name the same modules and no others.
fn shorten(targets: &[String], tree: &ModuleTree) -> Vec<String> {
    let wanted: HashSet<&str> = targets.iter().map(String::as_str).collect();
    let names = tree.modules.iter().map(|module| module.name.as_str());
    let others = names.filter(|name| !with_endings(name).any(|ending| wanted.contains(ending)));
    let of_others: HashSet<&str> = others.flat_map(with_endings).collect();
    // By their endings, the shortest first and word by word: what is chosen covers what comes after it.
    let by_endings = |name: &&String| {
        let mut all: Vec<&str> = with_endings(name).collect();
        all.reverse();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut ordered: Vec<&String> = targets.iter().collect();
    ordered.sort_by_cached_key(by_endings);
    let mut chosen: Vec<String> = Vec::new();
    let mut covered: HashSet<&str> = HashSet::new();
    for target in ordered {
        if with_endings(target).any(|ending| covered.contains(ending)) {
            continue;
        }
        let all: Vec<&str> = with_endings(target).collect();
        let shortest = all.iter().rev().find(|ending| !of_others.contains(*ending)).copied().unwrap_or(target);
        covered.insert(shortest);
        chosen.push(shortest.to_owned());
    }
    if chosen.len() < targets.len() { chosen } else { targets.to_vec() }
}

fn linear_words(tree: &ModuleTree) -> Vec<&str> {
    let mut seen = HashSet::new();
    let linear = tree.modules.iter().filter(|module| module.kind.is_linear());
    let words = linear.map(|module| module.name.rsplit('.').next().unwrap_or_default());
    words.filter(|word| seen.insert(*word)).collect()
}

fn no_default(tree: &ModuleTree, info: &ModelInfo) -> String {
    format!(
        "missing, and there is no default for model type `{}`: give \"all-linear\", or some of {}",
        info.model_type,
        linear_words(tree).join(", ")
    )
}

/// Refuses a target of which every module is trained in full: by `modules_to_save` it would be, by `target_modules` it would not.
fn refuse_saved(
    targets: &OneOrMany<String>,
    matcher: &Matcher,
    tree: &ModuleTree,
    selection: &Selection,
) -> Result<()> {
    for target in targets.as_slice() {
        // The reason of each module that the target names; the first that is not trained in full ends the search.
        let mut first = None;
        let mut are_all_saved = true;
        for module in &tree.modules {
            let is_named = match matcher {
                Matcher::Whole(..) => matcher.find(&module.name)?.is_some(),
                Matcher::Endings(..) => with_endings(&module.name).any(|ending| ending == target),
            };
            if !is_named {
                continue;
            }
            let Some(SkipReason::ModuleToSave { entry }) = selection.saved.protects(&module.name)? else {
                are_all_saved = false;
                break;
            };
            first.get_or_insert(entry);
        }
        if let (true, Some(entry)) = (are_all_saved, first) {
            return Err(Error::config(
                "modules_to_save",
                format!(
                    "`{entry}` names what target_modules names as well (`{}`): a module is either trained in full or \
                     adapted; take it out of one of the two",
                    quoted(target)
                ),
            ));
        }
    }
    Ok(())
}

/// Remarks on the alternatives of a regular expression by which no module is selected.
fn idle_alternatives(key: &str, pattern: &str, tree: &ModuleTree) -> Vec<String> {
    let words = linear_words(tree);
    // One that gives up is no finding: the whole expression did not.
    let selects = |regex: &Pattern| tree.modules.iter().any(|module| regex.is_match(&module.name).unwrap_or(true));
    let idle =
        alternatives(pattern).into_iter().filter(|one| Pattern::full(key, &one.pattern).is_ok_and(|r| !selects(&r)));
    let note = |one: Alternative| {
        let word = one.text.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).find(|word| !word.is_empty());
        let near = word.and_then(|word| nearest(word, words.iter().copied()));
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        format!("{key}: the alternative `{}` of the regular expression matches no module{hint}", quoted(&one.text))
    };
    idle.map(note).collect()
}

/// The list that a text probably should have been: the names in it, if each is the ending of a module's name.
fn as_list(pattern: &str, tree: &ModuleTree) -> Option<String> {
    let names: Vec<&str> = pattern.split([',', '|', ' ']).map(str::trim).filter(|name| !name.is_empty()).collect();
    let known: HashSet<&str> = tree.modules.iter().flat_map(|module| with_endings(&module.name)).collect();
    let each: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty() && names.iter().all(|name| known.contains(name))).then(|| format!("[{}]", each.join(", ")))
}

fn nothing(targets: &OneOrMany<String>, rules: &Targets, tree: &ModuleTree, excluded: usize) -> String {
    let mut text = match targets {
        OneOrMany::One(pattern) => {
            let list = as_list(pattern, tree);
            let hint = match &list {
                Some(list) => format!("target_modules = {list}"),
                None => "target_modules = [\"NAME\"]".to_owned(),
            };
            let text = format!(
                "target_modules \"{}\" select no module of the model: a text is a regular expression for the whole name of a \
                 module, a list holds endings of names ({hint})",
                quoted(pattern)
            );
            if list.is_some() && excluded == 0 {
                return text;
            }
            text
        }
        OneOrMany::Many(names) => {
            format!("target_modules [{}] select no module of the model", quoted(names.join(", ")))
        }
    };
    if excluded > 0 {
        text.push_str(&format!("; exclude_modules takes {excluded} away"));
    }
    if let Some(layers) = &rules.layers_to_transform {
        text.push_str(&format!("; layers_to_transform limits them to {:?}", layers.as_slice()));
    }
    let words = linear_words(tree);
    let near: Vec<_> = targets.as_slice().iter().filter_map(|t| nearest(t, words.iter().copied())).collect();
    if near.is_empty() {
        text.push_str(&format!("; linear layers here: {}", words.join(", ")));
    } else {
        text.push_str(&format!("; did you mean {}?", near.join(", ")));
    }
    text
}

/// Entries that a message names.
const MOST_NAMED: usize = 20;

/// Entries of a list that match nothing: PEFT does not mention them.
fn unmatched(
    entries: &[String],
    used: &BTreeSet<String>,
    tree: &ModuleTree,
    strict: bool,
    notes: &mut Vec<String>,
) -> Result<()> {
    // An entry may match only names that an earlier entry matches as well.
    let names = tree.modules.iter().map(|module| module.name.as_str());
    let known: HashSet<&str> = names.flat_map(with_endings).collect();
    let idle = |entry: &&String| !used.contains(*entry) && !known.contains(entry.as_str());
    let idle: Vec<&String> = entries.iter().filter(idle).collect();
    if idle.is_empty() {
        return Ok(());
    }
    let words = linear_words(tree);
    let each = idle.iter().map(|entry| match nearest(entry, words.iter().copied()) {
        Some(near) => format!("`{entry}` (did you mean `{near}`?)"),
        None => format!("`{}`", quoted(entry)),
    });
    let mut each: Vec<String> = each.take(MOST_NAMED).collect();
    each.extend(idle.len().checked_sub(MOST_NAMED).filter(|more| *more > 0).map(|more| format!("{more} more")));
    let problem = format!("{} match no module; linear layers here: {}", each.join(", "), words.join(", "));
    if strict {
        return Err(Error::config("target_modules", problem));
    }
    notes.push(format!("target_modules: {problem}"));
    Ok(())
}
