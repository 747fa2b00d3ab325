/* The contract between a quilt station and a plugin. Generated; do not edit. */

#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Of the contract: another major version is another contract.
#define QUILT_MAJOR 1

// Of the contract: a higher one has more.
#define QUILT_MINOR 0

// The plugin aborts the process when it panics: it must not run inside a station.
#define QUILT_FLAG_ABORTS 1

// The plugin asks for a process of its own for other reasons.
#define QUILT_FLAG_NEEDS_PROCESS 2

// Done; the body is the result.
#define QUILT_OK 0

// The command's own error; the body is that error.
#define QUILT_APP_ERROR 1

// The body that was given does not decode; the body is a text.
#define QUILT_SCHEMA_MISMATCH 2

// There is no such role or command; the body is a text.
#define QUILT_NOT_FOUND 3

// The plugin panicked; the body is a text.
#define QUILT_PANICKED 4

// It was cancelled.
#define QUILT_CANCELLED 5

// Whoever should have answered is gone.
#define QUILT_DROPPED 6

// It took too long.
#define QUILT_TIMED_OUT 7

// The token is over.
#define QUILT_STALE 8

// This side cannot do that.
#define QUILT_UNSUPPORTED 9

// Too much at once.
#define QUILT_BUSY 10

// Declined; the body is a text.
#define QUILT_REFUSED 11

// The configuration is wrong; the body is JSON, a list of `{"key": .. | null, "expected": "..", "got": ".."}`.
#define QUILT_INVALID 12

// The instance must be restarted to take this configuration.
#define QUILT_NEEDS_RESTART 13

// It failed; the body is a text.
#define QUILT_FAILED 14

// Bodies in JSON.
#define QUILT_JSON 0

// Bodies in bincode 2, standard configuration.
#define QUILT_BINCODE 1

// A person must act.
#define QUILT_LOG_ERROR 1

// Degraded, heals itself.
#define QUILT_LOG_WARN 2

// The story an operator tells.
#define QUILT_LOG_INFO 3

// For whoever debugs the role.
#define QUILT_LOG_DEBUG 4

// Every step.
#define QUILT_LOG_TRACE 5

// It works.
#define QUILT_REPORT_ACTIVE 0

// It waits, for what the text says.
#define QUILT_REPORT_WAITING 1

// The process that does its work is `number`; 0 for none.
#define QUILT_REPORT_PID 2

// It found again what an earlier station left, begun `number` milliseconds after 1970.
#define QUILT_REPORT_FOUND_AGAIN 3

// It cannot go on, for the reason in the text.
#define QUILT_REPORT_FAILED 4

// Its work ends now, as the text says.
#define QUILT_REPORT_ENDED 5

// The type of the note.
#define QUILT_NOTE_TYPE 1

// Bytes or UTF-8 text, lent for the duration of a call.
typedef struct {
  // The first byte; null only if `len` is 0.
  const uint8_t *ptr;
  // How many.
  uint64_t len;
} QuiltSlice;

// Bytes that change hands.
typedef struct {
  // The first byte; null only if `len` is 0.
  const uint8_t *ptr;
  // How many.
  uint64_t len;
  // What `release` is given.
  void *owner;
  // Gives the bytes back, exactly once, on any thread. Null if there is nothing to give back.
  void (*release)(void *owner);
} QuiltBuf;

// Who hears the result, exactly once.
typedef struct {
  // What `done` is given.
  uint64_t ctx;
  // Takes a status and a body. Never null.
  void (*done)(uint64_t ctx, uint32_t status, QuiltBuf body);
} QuiltCompletion;

// What a station offers to plugins. `instance` is the token that `Plugin::start` was given.
typedef struct {
  // Size of this structure, in bytes.
  uint32_t size;
  // The highest minor version that this station knows.
  uint32_t minor;
  // Writes a line to the instance's log.
  void (*log)(uint64_t instance, uint32_t level, QuiltSlice text);
  // Shows a state: `REPORT_..`.
  void (*report)(uint64_t instance, uint32_t report, uint64_t number, QuiltSlice text);
  // Publishes an attribute as JSON; with an empty `json` takes it back.
  void (*attribute)(uint64_t instance, QuiltSlice name, QuiltSlice json);
  // Emits an event with JSON.
  void (*emit)(uint64_t instance, QuiltSlice topic, QuiltSlice json);
  // Makes a command callable; `record` is JSON as in `Plugin::describe`. `OK`, `INVALID`, `STALE`, or `BUSY` if the instance
  // offers one of that group and name already, which then stays.
  uint32_t (*register_)(uint64_t instance, uint64_t command, QuiltSlice record);
  // Makes it not callable.
  void (*de_register)(uint64_t instance, QuiltSlice group, QuiltSlice name);
  // Calls a command of `station/role/instance` or `manager` with a JSON body. The status is `OK` and the body JSON,
  // `{"outcome": "reply", "body": ..}`. Gives a handle for `cancel`.
  uint64_t (*call)(uint64_t instance,
                   QuiltSlice target,
                   QuiltSlice command,
                   QuiltSlice body,
                   uint64_t time_ms,
                   QuiltCompletion done);
  // Ends a call soon; its completion comes all the same.
  void (*cancel)(uint64_t handle);
  // Sends one item of a streaming command. `OK` when the next may be sent, `CANCELLED` when the caller takes no more.
  // An item counts only if it is so answered before the call's own completion.
  void (*send_item)(uint64_t stream, QuiltBuf item, QuiltCompletion done);
  // How long the instance may take to stop, in milliseconds.
  uint64_t (*stop_timeout_ms)(uint64_t instance);
  // Whether a trace event would be taken. What was answered holds until `trace_generation` changes.
  uint32_t (*trace_enabled)(uint32_t level, QuiltSlice target);
  // Takes a trace event; `fields` is a JSON object, the text under `message`. `instance` is 0 if it is nobody's.
  void (*trace)(uint64_t instance, uint32_t level, QuiltSlice target, QuiltSlice fields);
  // A number that changes when what is taken does.
  uint64_t (*trace_generation)(void);
  // An extension by name; null if there is none.
  const void *(*extension)(QuiltSlice id);
} QuiltHost;

// What a plugin offers.
typedef struct {
  // Size of this structure, in bytes.
  uint32_t size;
  // The minor version in force.
  uint32_t minor;
  // *Control.* Gives a JSON document: `{"name", "version", "sdk", "roles": [{"name", "version", "doc", "instances",
  // "config_schema", "commands": [..]}]}`; a command is `{"group", "name", "doc", "read", "streaming", "fingerprint",
  // "request_schema", "reply_schema", "error_schema"}`.
  uint32_t (*describe)(QuiltBuf *out);
  // Judges a configuration (JSON) and changes nothing: `OK`, `INVALID` or `NOT_FOUND`.
  void (*validate)(QuiltSlice role, QuiltBuf config, QuiltCompletion done);
  // Starts an instance, which is known as `instance` from here on. `place` is JSON: `{"role", "instance", "state_dir",
  // "log_dir", "resuming"}`. `OK`, `INVALID` or `FAILED`. What was registered is callable once it is `OK`, and `run` is called
  // if the body is `{"work": true}`.
  void (*start)(uint64_t instance,
                QuiltSlice role,
                QuiltSlice place,
                QuiltBuf config,
                QuiltCompletion done);
  // Gives an instance another configuration; no call is under way. `OK`, `INVALID`, `NEEDS_RESTART` or `FAILED`.
  void (*update)(uint64_t instance, QuiltBuf config, QuiltCompletion done);
  // Begins the instance's own work, once after a `start` that said that there is some. `OK` or `FAILED` when it ends.
  // Gives a handle for `cancel`; 0 if it has ended already.
  uint64_t (*run)(uint64_t instance, QuiltCompletion done);
  // Ends an instance; the token is over once this is done. With `detach` not 0 the station restarts, and work that can
  // outlive it may go on.
  void (*stop)(uint64_t instance, uint32_t detach, QuiltCompletion done);
  // Ends what an earlier station left of an instance that is not started again; `instance` is known during this call
  // only.
  void (*abandon)(uint64_t instance, QuiltSlice role, QuiltSlice place, QuiltCompletion done);
  // Calls a command by the number under which the plugin registered it. `stream` is not 0 if the caller takes items:
  // see `Host::send_item`. `OK`, `APP_ERROR`, `SCHEMA_MISMATCH`, `NOT_FOUND`, `REFUSED`, `PANICKED`, `CANCELLED` or
  // `BUSY`. A JSON body of `APP_ERROR` may have a second document behind the error: a string for people. Gives a handle for
  // `cancel`; 0 if it has ended already.
  uint64_t (*call)(uint64_t instance,
                   uint64_t command,
                   uint64_t stream,
                   uint32_t encoding,
                   QuiltBuf body,
                   QuiltCompletion done);
  // Ends a call or work soon; its completion comes all the same. A handle that is over is ignored.
  void (*cancel)(uint64_t handle);
  // An extension by name, such as `quilt.example/1`; null if there is none.
  const void *(*extension)(QuiltSlice id);
} QuiltPlugin;

// The one exported datum. Looking at it runs none of the plugin's code but its constructors.
typedef struct {
  // [`MAGIC`].
  uint8_t magic[8];
  // Size of this structure, in bytes.
  uint32_t size;
  // [`MAJOR`].
  uint32_t major;
  // The lowest minor version that this plugin can do with.
  uint32_t minor_min;
  // The highest that it knows.
  uint32_t minor_max;
  // `FLAG_..`.
  uint32_t flags;
  // 0.
  uint32_t reserved;
  // *Control.* Takes the station's functions, which stay valid for ever, and the minor version in force; gives the
  // plugin's, which stay valid for ever too. May be called again: the answer is the same. On failure `error` is a text.
  uint32_t (*open)(const QuiltHost *host,
                   uint32_t minor,
                   const QuiltPlugin **plugin,
                   QuiltBuf *error);
} QuiltEntry;
