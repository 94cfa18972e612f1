//! Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tonic::{Status, Streaming};

use crate::proto::{
    ChatMessage, Choice, ChoiceDelta, CreateChatCompletionResponse, FunctionCall, StreamChatCompletionResponse,
    ToolCall, ToolCallDelta, chat_message::Content,
};

/// Reads a stream to its end, and returns the response that its chunks make up.
pub async fn accumulate(
    mut chunks: Streaming<StreamChatCompletionResponse>,
) -> Result<CreateChatCompletionResponse, Status> {
    let mut accumulator = Accumulator::default();
    while let Some(chunk) = chunks.message().await? {
        accumulator.add(chunk);
    }
    Ok(accumulator.build())
}

/// The same chunk by chunk: for a program that shows text as it comes, or if the stream fails.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    reply: CreateChatCompletionResponse,
    choices: BTreeMap<i32, ChoiceSoFar>,
}

impl Accumulator {
    /// Adds the next chunk.
    pub fn add(&mut self, chunk: StreamChatCompletionResponse) {
        let reply = &mut self.reply;
        keep_first(&mut reply.id, chunk.id);
        keep_first(&mut reply.model, chunk.model);
        if reply.created == 0 {
            reply.created = chunk.created;
        }
        keep_last(&mut reply.episode_id, chunk.episode_id);
        keep_last(&mut reply.system_fingerprint, chunk.system_fingerprint);
        keep_last(&mut reply.service_tier, chunk.service_tier);
        keep_last(&mut reply.raw_usage_json, chunk.raw_usage_json);
        keep_last(&mut reply.raw_response_json, chunk.raw_response_json);
        merge(&mut reply.usage, chunk.usage);
        reply.extra_json.extend(chunk.extra_json);
        for choice in chunk.choices {
            self.choices.entry(choice.index).or_default().add(choice);
        }
    }

    /// Returns the response as it is so far.
    pub fn build(&self) -> CreateChatCompletionResponse {
        let choices = self.choices.iter();
        CreateChatCompletionResponse {
            object: "chat.completion".into(),
            choices: choices.map(|(index, choice)| choice.build(*index)).collect(),
            ..self.reply.clone()
        }
    }
}

#[derive(Clone, Debug, Default)]
struct ChoiceSoFar {
    choice: Choice,
    message: ChatMessage,
    content: Option<String>,
    calls: Vec<(i32, ToolCall)>,
    places: HashMap<i32, usize>, // of the last call at each index
    place: Option<usize>,        // of the fragment before
}

impl ChoiceSoFar {
    fn add(&mut self, added: ChoiceDelta) {
        let reason = added.finish_reason.filter(|reason| !reason.is_empty());
        keep_last(&mut self.choice.finish_reason, reason);
        merge(&mut self.choice.logprobs, added.logprobs);
        self.choice.extra_json.extend(added.extra_json);
        let Some(delta) = added.delta else { return };
        keep_first(&mut self.message.role, delta.role.unwrap_or_default());
        append(&mut self.content, delta.content);
        append(&mut self.message.refusal, delta.refusal);
        append(&mut self.message.reasoning_content, delta.reasoning_content);
        append(&mut self.message.reasoning, delta.reasoning);
        self.message.annotations.extend(delta.annotations);
        self.message.extra_json.extend(delta.extra_json);
        for fragment in delta.tool_calls {
            let place = self.find(&fragment);
            self.place = Some(place);
            let call = &mut self.calls[place].1;
            keep_first(&mut call.id, fragment.id.unwrap_or_default());
            keep_first(call.r#type.get_or_insert_default(), fragment.r#type.unwrap_or_default());
            call.extra_json.extend(fragment.extra_json);
            if let Some(added) = fragment.function {
                let function: &mut FunctionCall = call.function.get_or_insert_default();
                keep_first(&mut function.name, added.name.unwrap_or_default());
                function.arguments += &added.arguments.unwrap_or_default();
                function.extra_json.extend(added.extra_json);
            }
        }
    }

    /// Returns the place of a fragment's call: of the last one at its index, or of the one before; or of a new one.
    fn find(&mut self, fragment: &ToolCallDelta) -> usize {
        let found = fragment
            .index
            .map_or(self.place, |index| self.places.get(&index).copied());
        if let Some(place) = found {
            let known = self.calls[place].1.id.as_str();
            let id = fragment.id.as_deref().unwrap_or_default();
            let has_ids = !known.is_empty() && !id.is_empty();
            let is_other = if has_ids { known != id } else { fragment.index.is_none() };
            let name = fragment.function.as_ref().and_then(|function| function.name.as_deref());
            if !is_other || name.unwrap_or_default().is_empty() {
                return place;
            }
        }
        let place = self.calls.len();
        let index = fragment.index.unwrap_or(place as i32);
        self.calls.push((index, ToolCall::default()));
        self.places.insert(index, place);
        place
    }

    fn build(&self, index: i32) -> Choice {
        let mut message = self.message.clone();
        keep_first(&mut message.role, "assistant".into());
        let text = self.content.clone();
        message.content = text
            .filter(|text| !text.is_empty() || self.calls.is_empty())
            .map(Content::Text);
        let mut calls = self.calls.clone();
        calls.sort_by_key(|(index, _)| *index);
        for (_, mut call) in calls {
            keep_first(call.r#type.get_or_insert_default(), "function".into());
            message.tool_calls.push(call);
        }
        Choice {
            index,
            message: Some(message),
            ..self.choice.clone()
        }
    }
}

/// Sets what is empty; an empty value replaces nothing.
fn keep_first(kept: &mut String, added: String) {
    if kept.is_empty() {
        *kept = added;
    }
}

fn keep_last(kept: &mut Option<String>, added: Option<String>) {
    if added.is_some() {
        *kept = added;
    }
}

fn append(kept: &mut Option<String>, added: Option<String>) {
    if let Some(text) = added {
        kept.get_or_insert_default().push_str(&text);
    }
}

/// Sets what is set, at each level, and appends to lists: protobuf's merge.
fn merge<M: Message + Default>(kept: &mut Option<M>, added: Option<M>) {
    if let Some(message) = added {
        let merged = kept.get_or_insert_default().merge(message.encode_to_vec().as_slice());
        debug_assert!(merged.is_ok());
    }
}
