/** A model card's Markdown as elements: headings, paragraphs, lists, tables, bold and code. Never as HTML text. */

import type { ComponentChildren, VNode } from "preact";

const INLINE = /(\*\*[^*]+\*\*|``[^`]+``|`[^`]+`|\[[^\]]+\]\([^)]+\))/;

function inline(text: string): ComponentChildren[] {
  return text.split(INLINE).map((part) => {
    if (part.startsWith("**") && part.endsWith("**") && part.length > 4) return <strong>{part.slice(2, -2)}</strong>;
    if (part.startsWith("`") && part.endsWith("`") && part.length > 2) return <code>{part.replace(/^`+|`+$/g, "")}</code>;
    const link = /^\[([^\]]+)\]\(([^)]+)\)$/.exec(part);
    // A card may come with somebody's model: its addresses are shown, not followed.
    return link ? `${link[1]} (${link[2]})` : part;
  });
}

function cells(line: string): string[] {
  return line.replace(/^\s*\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
}

function table(lines: string[]): VNode {
  const [head = "", , ...rows] = lines;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="table">
      <table>
        <thead><tr>{cells(head).map((cell) => <th scope="col">{inline(cell)}</th>)}</tr></thead>
        <tbody>{rows.map((row) => <tr>{cells(row).map((cell) => <td>{inline(cell)}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}

const START = /^(#{1,6}\s|[-*]\s|\d+\.\s|\||```)/;

export function Markdown({ text }: { text: string }) {
  const lines = text.replace(/\r/g, "").split("\n");
  const out: VNode[] = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at] ?? "";
    const take = (fits: (line: string) => boolean): string[] => {
      const from = at;
      while (at < lines.length && fits(lines[at] ?? "")) at++;
      return lines.slice(from, at);
    };
    const heading = /^(#{1,6})\s+(.*)/.exec(line);
    if (!line.trim()) at++;
    else if (heading) {
      at++;
      const Level = heading[1]!.length <= 2 ? "h3" : "h4";
      out.push(<Level>{inline(heading[2]!)}</Level>);
    } else if (line.startsWith("```")) {
      at++;
      out.push(<pre class="scroll" tabIndex={0}>{take((one) => !one.startsWith("```")).join("\n")}</pre>);
      at++;
    } else if (line.startsWith("|") && /^\|[\s:|-]+$/.test(lines[at + 1] ?? "")) out.push(table(take((one) => one.startsWith("|"))));
    else if (/^([-*]|\d+\.)\s/.test(line)) {
      const items: string[] = [];
      for (const one of take((each) => each.trim() !== "" && !/^(#|\||```)/.test(each))) {
        if (/^([-*]|\d+\.)\s/.test(one)) items.push(one.replace(/^([-*]|\d+\.)\s+/, ""));
        else items.push(`${items.pop() ?? ""} ${one.trim()}`);
      }
      const List = /^\d/.test(line) ? "ol" : "ul";
      out.push(<List>{items.map((item) => <li>{inline(item)}</li>)}</List>);
    } else {
      at++;
      const rest = take((one) => one.trim() !== "" && !START.test(one));
      out.push(<p>{inline([line, ...rest].join(" "))}</p>);
    }
  }
  return <div class="markdown">{out}</div>;
}
