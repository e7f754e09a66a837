"""The style and the script of the page of a report. The page is whole without the script, which sorts, folds and finds.

A file of its own because it is in other languages.
"""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--text:#24292f;--faint:#57606a;--edge:#d0d7de;--card:#f6f8fa;
--peak:#9dbdf2;
--live:#1f5bb5;--bad:#c62828;--good:#1a7f37;--doubt:#9a6700;--accent:#0969da;--mean:#2563c9;
--floor:#0f766e;--event:#8250df;--ahead:#c2410c}
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--text:#e6edf3;--faint:#9198a1;--edge:#30363d;
--card:#161b22;
--peak:#2f5c9f;--live:#6ca4ff;--bad:#ff7b72;--good:#3fb950;--doubt:#d29922;--accent:#6ca4ff;
--mean:#6ca4ff;--floor:#56d4c4;--event:#bc8cff;--ahead:#ffa657}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--text);font:14px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1240px;margin:0 auto;padding:1.2em 1.5em 3em}
h1{font-size:1.5em;margin:0 0 .2em;overflow-wrap:anywhere}
summary{cursor:pointer;font-size:1.15em;font-weight:600;padding:.3em 0}
summary small{color:var(--faint);font-weight:400;font-size:.8em}
details{border-top:1px solid var(--edge);padding:.5em 0 .8em}
details details{border:0;padding:0}details details summary{font-size:1em;font-weight:400;color:var(--faint)}
code,.n,.path{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.93em}
.who,.tiles{display:grid;margin:.6em 0;gap:.1em 1em}
.who{grid-template-columns:max-content 1fr;color:var(--faint)}
.who dd,.tiles dd{margin:0;overflow-wrap:anywhere}
.tiles{grid-template-columns:repeat(auto-fit,minmax(8.5em,1fr));gap:.7em}
.tiles div{background:var(--card);border:1px solid var(--edge);border-radius:6px;padding:.5em .8em}
.tiles dt{color:var(--faint);font-size:.85em}.tiles dd{font-size:1.25em;font-weight:600;
font-variant-numeric:tabular-nums}
.say{margin:.4em 0;padding:.5em .8em;border-left:4px solid var(--doubt);background:var(--card);
overflow-wrap:anywhere}
ul{margin:.4em 0}
.say p{margin:.25em 0}.say ol{margin:0}
.bad{border-color:var(--bad)}.good{border-color:var(--good)}
.path{margin:.3em 0 0;padding-left:1.6em}.hint{color:var(--faint)}
.note{color:var(--faint);margin:.3em 0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--faint)}
th,td{padding:.18em .7em .18em 0;border-bottom:1px solid var(--edge);text-align:right;font-weight:400;
white-space:nowrap}
thead th{font-weight:600;vertical-align:bottom}
.o tbody th,.t{text-align:left;white-space:normal;overflow-wrap:anywhere}
.o tbody th{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.93em;
padding-left:calc(var(--d,0)*1.1em + 1.3em);position:relative}
.t:first-child{min-width:6em}
thead th:first-child{text-align:left}
.o td:last-child,.o th:last-child{width:24%;min-width:6em;padding-right:0;text-align:left}
i{display:block;height:.8em;border-radius:2px;
background:linear-gradient(var(--live) 0 0) 0/var(--l,0) 100% no-repeat,
linear-gradient(var(--peak) 0 0) 0/var(--p,0) 100% no-repeat}
.key{color:var(--faint);margin:.2em 0;display:flex;flex-wrap:wrap;gap:.1em 1.2em}
.key b{display:inline-block;width:1em;height:.7em;margin-right:.4em;border-radius:2px}
.tl,.tm{display:block;width:100%}
button,input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--edge);border-radius:5px;
padding:.15em .6em}
label{display:flex;gap:.5em;align-items:center}input{width:16em;max-width:60vw}
thead th button{border:0;background:none;padding:0;font-weight:600;cursor:pointer;text-align:inherit}
thead th button:after{content:"\\2195";opacity:.35;padding-left:.2em}
[aria-sort=descending] button:after{content:"\\2193";opacity:1}[aria-sort=ascending] button:after{content:"\\2191";
opacity:1}
.fold{position:absolute;left:calc(var(--d,0)*1.1em);top:.1em;border:0;background:none;padding:0 .2em;cursor:pointer;
color:var(--faint)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
.tools:empty{display:none}
.tools{display:flex;flex-wrap:wrap;gap:.5em;align-items:center;margin:.3em 0}
@media(max-width:760px){main{padding:1em .8em 2em}.o .x,.tl-odd{display:none}th,td{padding-right:.5em}
.o td:last-child,.o th:last-child{width:20%;min-width:3.5em}
thead th{white-space:normal}.o tbody th{min-width:7em}}
@media(prefers-reduced-motion:no-preference){summary{transition:color .1s}}
@media print{.tools,.fold{display:none}}
""".replace("\n", "")

# Buttons and the field for names are made here: without the script there are none that do nothing.
SCRIPT: Final = """
'use strict';
const number=t=>{const m=/^(\\d+):(\\d+):(\\d+)$/.exec(t);
return m?m[1]*3600+m[2]*60+ +m[3]:parseFloat(t.replace(/[~,]/g,''))};
const make=(tag,text,more)=>Object.assign(document.createElement(tag),{textContent:text},more);
for(const table of document.querySelectorAll('table.o')){
const body=table.tBodies[0],many=40,rows=[...body.rows].map(row=>({row,cells:row.cells,children:[],open:true,
name:row.cells[0].textContent.toLowerCase(),depth:+row.cells[0].style.getPropertyValue('--d')||0}));
const roots=[],above=[];
for(const one of rows){above.length=one.depth;const parent=above[one.depth-1];
one.parent=parent;(parent?parent.children:roots).push(one);above[one.depth]=one}
let column=-1,up=false,query='',all=rows.length<=many;
const tools=make('div','',{className:'tools'}),label=make('label',rows.length>8?'Find ':''),
field=make('input','',{type:'search'}),told=make('span','',{className:'note'}),more=make('button','',{type:'button'}
);
told.setAttribute('role','status');label.append(field);
if(rows.length>8)tools.append(label);
if(rows.length>8)tools.append(more,told);table.parentNode.before(tools);
const key=one=>column?number(one.cells[column].textContent):one.name;
const sorted=list=>column<0?list:[...list].sort((a,b)=>{const x=key(a),y=key(b);
if(x!==x||y!==y)return (x!==x)-(y!==y);return (x<y?-1:x>y?1:0)*(up?1:-1)});
const matches=one=>one.name.includes(query)||one.children.some(matches);
const draw=()=>{const focused=document.activeElement,shown=[],walk=(list,seen)=>{for(const one of sorted(list)){
const visible=query?matches(one):seen;if(visible)shown.push(one);one.row.hidden=!visible;
body.append(one.row);walk(one.children,visible&&one.open)}};walk(roots,true);
const cut=!all&&!query;shown.forEach((one,at)=>{if(cut&&at>=many)one.row.hidden=true});
more.hidden=rows.length<=many||!!query;more.textContent=all?`Show ${many}`:`Show all ${rows.length}`;
told.textContent=query?`${shown.length} of ${rows.length}`:'';
if(document.activeElement!==focused)focused.focus()};
for(const one of rows)if(one.children.length){
const fold=make('button','\\u25be',{type:'button',className:'fold'});
const say=()=>{fold.textContent=one.open?'\\u25be':'\\u25b8';fold.setAttribute('aria-expanded',one.open)};
fold.setAttribute('aria-label',`rows below ${one.cells[0].textContent}`);say();
fold.onclick=()=>{one.open=!one.open;say();draw()};one.cells[0].prepend(fold)}
[...table.tHead.rows[0].cells].forEach((th,at,list)=>{if(at===list.length-1)return;
const button=make('button',th.textContent,{type:'button'});th.textContent='';th.append(button);
button.onclick=()=>{up=column===at?!up:!at;column=at;
list.forEach(other=>other.removeAttribute('aria-sort'));
th.setAttribute('aria-sort',up?'ascending':'descending');draw()}});
field.oninput=()=>{query=field.value.trim().toLowerCase();draw()};
more.onclick=()=>{all=!all;draw()};
draw()}
""".replace("\n", "")
