package api

import (
	"encoding/json"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// Tool is a registered tool.
type Tool struct {
	Name         string                `json:"name"`
	Version      string                `json:"version"`
	Title        string                `json:"title,omitempty"`
	Description  string                `json:"description"`
	Digest       string                `json:"digest" doc:"Of its manifest and files"`
	Requirement  isolation.Requirement `json:"requirement"`
	InputSchema  json.RawMessage       `json:"input_schema" doc:"JSON Schema of the input, an object"`
	OutputSchema json.RawMessage       `json:"output_schema,omitempty" doc:"JSON Schema of the output"`
	ReadOnly     bool                  `json:"read_only,omitempty"`
	Idempotent   bool                  `json:"idempotent,omitempty"`
}

// Tools are those that are registered.
type Tools struct {
	Tools []Tool `json:"tools" nullable:"false"`
}

// ToolCall is a call of a tool.
type ToolCall struct {
	Input map[string]any `json:"input" doc:"As its input schema says"`
}

// ToolResult is a call's outcome: an output, or why there is none.
type ToolResult struct {
	Tool      string          `json:"tool" doc:"Name and version"`
	Digest    string          `json:"digest"`
	Failure   *ToolFailure    `json:"failure,omitempty" doc:"The tool failed: there is no output"`
	Output    json.RawMessage `json:"output,omitempty"`
	Artifacts []ToolArtifact  `json:"artifacts,omitempty"`
	Replayed  bool            `json:"replayed,omitempty" doc:"Of an earlier call by the same key"`
	Run       *engine.Result  `json:"run,omitempty" doc:"Decision, exit and usage; none: nothing was run"`
}

// ToolFailure is why a call has no output.
type ToolFailure struct {
	Kind    string `json:"kind" enum:"invalid_input,exit,limit,canceled,invalid_output,missing_file"`
	Message string `json:"message"`
}

// ToolArtifact is a result file.
type ToolArtifact struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	Bytes     int64  `json:"bytes"`
	Data      []byte `json:"data,omitempty" doc:"Its content; none: all of them together are too much to be sent"`
}
