// The part of an address after # is known to the browser alone: it is added to where the login leads back to.
const next = document.querySelector("input[name=next]");
if (next && location.hash && !next.value.includes("#")) next.value += location.hash;
