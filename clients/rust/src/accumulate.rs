//! Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tonic::{Status, Streaming};

use crate::proto::{
    Choice, ChoiceDelta, CreateChatCompletionResponse, StreamChatCompletionResponse, ToolCall, ToolCallDelta,
    chat_message::Content,
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
        keep_first(&mut reply.created, chunk.created);
        keep_first(&mut reply.model, chunk.model);
        reply.episode_id = chunk.episode_id.or(reply.episode_id.take());
        reply.system_fingerprint = chunk.system_fingerprint.or(reply.system_fingerprint.take());
        reply.service_tier = chunk.service_tier.or(reply.service_tier.take());
        reply.raw_usage_json = chunk.raw_usage_json.or(reply.raw_usage_json.take());
        reply.raw_response_json = chunk.raw_response_json.or(reply.raw_response_json.take());
        merge(&mut reply.usage, chunk.usage);
        reply.extra_json.extend(chunk.extra_json);
        for choice in chunk.choices {
            self.choices.entry(choice.index).or_default().add(choice);
        }
    }

    /// Returns the response as it is so far.
    pub fn build(&self) -> CreateChatCompletionResponse {
        let mut reply = self.reply.clone();
        reply.object = "chat.completion".into();
        reply.choices = self.choices.values().map(ChoiceSoFar::build).collect();
        reply
    }
}

/// A choice, whose calls keep their index until the end.
#[derive(Clone, Debug, Default)]
struct ChoiceSoFar {
    choice: Choice,
    text: Option<String>,
    places: HashMap<i32, usize>, // of the last call at each index
    place: Option<usize>,        // of the call of the fragment before
}

impl ChoiceSoFar {
    fn add(&mut self, added: ChoiceDelta) {
        let choice = &mut self.choice;
        choice.index = added.index;
        let reason = added.finish_reason.filter(|reason| !reason.is_empty());
        choice.finish_reason = reason.or(choice.finish_reason.take());
        merge(&mut choice.logprobs, added.logprobs);
        choice.extra_json.extend(added.extra_json);
        let delta = added.delta.unwrap_or_default();
        let message = choice.message.get_or_insert_default();
        keep_first(&mut message.role, delta.role.unwrap_or_default());
        append(&mut self.text, delta.content);
        append(&mut message.refusal, delta.refusal);
        append(&mut message.reasoning_content, delta.reasoning_content);
        append(&mut message.reasoning, delta.reasoning);
        message.annotations.extend(delta.annotations);
        message.extra_json.extend(delta.extra_json);
        for fragment in delta.tool_calls {
            let call = self.find(&fragment);
            keep_first(&mut call.id, fragment.id.unwrap_or_default());
            keep_first(call.r#type.get_or_insert_default(), fragment.r#type.unwrap_or_default());
            call.extra_json.extend(fragment.extra_json);
            if let Some(added) = fragment.function {
                let function = call.function.get_or_insert_default();
                keep_first(&mut function.name, added.name.unwrap_or_default());
                function.arguments += &added.arguments.unwrap_or_default();
                function.extra_json.extend(added.extra_json);
            }
        }
    }

    /// Returns the last call at the fragment's index, or the one of the fragment before; or a new one.
    fn find(&mut self, fragment: &ToolCallDelta) -> &mut ToolCall {
        let calls = &mut self.choice.message.get_or_insert_default().tool_calls;
        let index = fragment.index.unwrap_or(calls.len() as i32);
        let place = if fragment.index.is_some() { self.places.get(&index).copied() } else { self.place };
        let (known, id) = (place.map_or("", |place| &calls[place].id), fragment.id());
        let is_other = if known.is_empty() || id.is_empty() { fragment.index.is_none() } else { known != id };
        let is_named = fragment.function.as_ref().is_some_and(|function| !function.name().is_empty());
        let place = place.filter(|_| !is_other || !is_named).unwrap_or_else(|| {
            calls.push(ToolCall { index: Some(index), ..Default::default() });
            self.places.insert(index, calls.len() - 1);
            calls.len() - 1
        });
        self.place = Some(place);
        &mut calls[place]
    }

    fn build(&self) -> Choice {
        let mut choice = self.choice.clone();
        let message = choice.message.get_or_insert_default();
        keep_first(&mut message.role, "assistant".into());
        let text = self.text.clone().filter(|text| !text.is_empty() || message.tool_calls.is_empty());
        message.content = text.map(Content::Text);
        message.tool_calls.sort_by_key(|call| call.index);
        for call in &mut message.tool_calls {
            call.index = None;
            keep_first(call.r#type.get_or_insert_default(), "function".into());
        }
        choice
    }
}

/// Sets what is 0 or empty; a later value replaces nothing.
fn keep_first<T: Default + PartialEq>(kept: &mut T, added: T) {
    if *kept == T::default() {
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
