/*
 * What guise itself says goes to stderr, one line a message, "guise: " before it; stdout is the
 * guest's.
 *
 * A message is one write(2), so that lines of several threads or processes do not mix.  While the
 * terminal is raw (the guest's console owns it) a line feed alone would not return the carriage:
 * the message then ends in CR LF and starts on a line of its own.
 *
 * A message may quote strangers (a name in an archive, what a helper says): their control characters
 * are '?' in it.
 */
#pragma once

void log_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
