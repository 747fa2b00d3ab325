/* A role in C: `hello` greets. Copy this file to begin a plugin of your own.
 *
 *   cc -shared -fPIC -O2 -I../../../plugin-api/abi/include -o libhello.so hello.c
 *
 * Put libhello.so into a plugin folder of a station, and two lines into the fleet file:
 *
 *   [station.cam-1.roles.hello.main]
 *   greeting = "Hello"
 *
 *   quiltctl call cam-1/hello/main greet '{"name":"x"}'        # "Hello, x!"
 *
 * The rules are in quilt_plugin.h. Three matter most: answer each completion exactly once, give back each QuiltBuf that you
 * are given, and expect calls on any thread. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "quilt_plugin.h"

#define TEXT_MAX 80 /* Of a greeting or name, in bytes. */
enum { GREET = 1, CHEER = 2 }; /* The numbers under which the station calls the commands. */

/* Fingerprints tell who may send bincode. Ours are those of nobody, so all that arrives is JSON. */
#define TEXT_SCHEMA(key) "{\"type\":\"object\",\"required\":[\"" key "\"],\"additionalProperties\":false,\"properties\":" \
    "{\"" key "\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":80}}}"
#define COMMAND(name, doc, streaming) "{\"group\":\"Hello\",\"name\":\"" name "\",\"doc\":\"" doc "\",\"read\":true," \
    "\"streaming\":" streaming ",\"fingerprint\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"request_schema\":" TEXT_SCHEMA("name") \
    ",\"reply_schema\":{\"type\":\"string\"},\"error_schema\":{\"type\":\"string\"}}"
#define GREET_RECORD COMMAND("greet", "Greets somebody.", "false")
#define CHEER_RECORD COMMAND("cheer", "Greets somebody three times.", "true")
#define MANIFEST "{\"name\":\"hello\",\"version\":\"1.0.0\",\"sdk\":\"\",\"roles\":[{\"name\":\"hello\",\"version\":\"1.0.0\"," \
    "\"doc\":\"Greets.\",\"instances\":0,\"config_schema\":" TEXT_SCHEMA("greeting") ",\"commands\":[" GREET_RECORD "," \
    CHEER_RECORD "]}]}"

typedef struct Hello { uint64_t token; unsigned greeted; char greeting[TEXT_MAX + 1]; struct Hello *next; } Hello;
static const QuiltHost *host;
static Hello *instances; /* Those that run. Calls for several come at once, so it is touched only under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The place of an instance in the list, or of the end. Under the lock. */
static Hello **find(uint64_t token) {
    Hello **at = &instances;
    while (*at && (*at)->token != token) at = &(*at)->next;
    return at;
}

static QuiltSlice lend(const char *text) { return (QuiltSlice){(const uint8_t *)text, strlen(text)}; }
static void give_back(QuiltBuf buf) { if (buf.release) buf.release(buf.owner); }

/* Answers with a text, which changes hands: the station gives it back to our `free`. */
static QuiltBuf text(const char *format, ...) {
    char *made = calloc(4, TEXT_MAX);
    if (!made) return (QuiltBuf){0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(made, 4 * TEXT_MAX, format, arguments);
    va_end(arguments);
    return (QuiltBuf){(const uint8_t *)made, strlen(made), made, free};
}
static void answer(QuiltCompletion done, uint32_t status, QuiltBuf body) { done.done(done.ctx, status, body); }

/* What comes after `what` and the blanks before it; null if something else is there. */
static const char *past(const char *at, char what) {
    if (at) at += strspn(at, " \t\r\n");
    return at && *at == what ? at + 1 : NULL;
}
static const char *past_text(const char *at, char out[TEXT_MAX + 1]) {
    if (!(at = past(at, '"'))) return NULL;
    size_t length = 0;
    while ((unsigned char)at[length] >= ' ' && at[length] != '"' && at[length] != '\\') length++;
    if (length == 0 || length > TEXT_MAX) return NULL;
    memcpy(out, at, length);
    out[length] = 0;
    return past(at + length, '"');
}
/* Takes {"KEY": "TEXT"} and nothing else. Where more is to be read, or escapes, it is time for a JSON library. */
static bool take_text(QuiltBuf json, const char *key, char out[TEXT_MAX + 1]) {
    char copy[4 * TEXT_MAX] = "", found[TEXT_MAX + 1]; /* The copy ends with a zero, which the buffer does not. */
    if (json.len && json.len < sizeof copy) memcpy(copy, json.ptr, json.len);
    give_back(json);
    const char *at = past(past_text(past(past_text(past(copy, '{'), found), ':'), out), '}');
    return past(at, 0) && strcmp(found, key) == 0;
}
static bool take_greeting(QuiltBuf config, char out[TEXT_MAX + 1], QuiltCompletion done) {
    bool fine = take_text(config, "greeting", out);
    if (!fine) answer(done, QUILT_INVALID, text("[{\"key\":\"greeting\",\"expected\":\"a text of 1 to %d bytes, without "
        "quotes and backslashes, and no other key\",\"got\":\"something else\"}]", TEXT_MAX));
    return fine;
}

static uint32_t describe(QuiltBuf *out) {
    *out = (QuiltBuf){(const uint8_t *)MANIFEST, sizeof MANIFEST - 1, NULL, NULL}; /* Constant: nothing to give back. */
    return QUILT_OK;
}
static void validate(QuiltSlice role, QuiltBuf config, QuiltCompletion done) {
    (void)role; /* There is but one. */
    char greeting[TEXT_MAX + 1];
    if (take_greeting(config, greeting, done)) answer(done, QUILT_OK, (QuiltBuf){0});
}
static void start(uint64_t token, QuiltSlice role, QuiltSlice place, QuiltBuf config, QuiltCompletion done) {
    (void)role, (void)place;
    char greeting[TEXT_MAX + 1], line[2 * TEXT_MAX];
    if (!take_greeting(config, greeting, done)) return;
    Hello *hello = calloc(1, sizeof *hello);
    if (!hello) return answer(done, QUILT_FAILED, text("out of memory"));
    hello->token = token;
    strcpy(hello->greeting, greeting);
    pthread_mutex_lock(&lock);
    hello->next = instances;
    instances = hello; /* Known before it is registered: a call may come at once. */
    pthread_mutex_unlock(&lock);
    host->register_(token, GREET, lend(GREET_RECORD));
    host->register_(token, CHEER, lend(CHEER_RECORD));
    snprintf(line, sizeof line, "greets with %s", greeting);
    host->log(token, QUILT_LOG_INFO, lend(line));
    answer(done, QUILT_OK, (QuiltBuf){0});
}
static void update(uint64_t token, QuiltBuf config, QuiltCompletion done) {
    char greeting[TEXT_MAX + 1];
    if (!take_greeting(config, greeting, done)) return;
    pthread_mutex_lock(&lock);
    Hello *hello = *find(token);
    if (hello) strcpy(hello->greeting, greeting);
    pthread_mutex_unlock(&lock);
    answer(done, hello ? QUILT_OK : QUILT_STALE, (QuiltBuf){0}); /* Never answer under a lock: that may call us. */
}
static void stop(uint64_t token, uint32_t detach, QuiltCompletion done) {
    (void)detach; /* Nothing of it outlives the station. */
    pthread_mutex_lock(&lock);
    Hello **at = find(token), *hello = *at;
    if (hello) *at = hello->next;
    pthread_mutex_unlock(&lock);
    free(hello);
    answer(done, QUILT_OK, (QuiltBuf){0});
}

/* A stream under way. Each item is sent when the station has room for it: `cheer_on` is how it says so. */
typedef struct { uint64_t stream; int left; QuiltCompletion done; char greeting[TEXT_MAX + 1], name[TEXT_MAX + 1]; } Cheer;
static void cheer_on(uint64_t ctx, uint32_t status, QuiltBuf nothing) {
    Cheer *cheer = (Cheer *)(uintptr_t)ctx;
    give_back(nothing);
    if (status == QUILT_OK && cheer->left-- > 0) {
        QuiltBuf item = text("\"%s, %s!\"", cheer->greeting, cheer->name);
        return host->send_item(cheer->stream, item, (QuiltCompletion){ctx, cheer_on});
    }
    answer(cheer->done, status == QUILT_OK ? QUILT_OK : QUILT_CANCELLED, status == QUILT_OK ? text("null") : (QuiltBuf){0});
    free(cheer);
}
